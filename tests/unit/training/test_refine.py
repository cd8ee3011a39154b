from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile
from training.batches import AnswerData, AudioEmbeddings
from training.config import TrainConfig
from training.manifest import load_manifest
from training.mask_logits import binarise
from training.objective import mean_loss
from training.refine import refine
from training.train import train

MakeRecipe = Callable[..., TrainConfig]
WANTED = np.random.default_rng(0).random((3, 8)) < 0.5


def distance(head_mask: HeadMask) -> float:
    """Heads that differ from the wanted ones."""
    return float((head_mask.heads != WANTED).sum())


def logits_with(wrong: list[int]) -> torch.Tensor:
    """The wanted head mask, the heads `wrong` excepted, which are the least decided but for others."""
    sizes = torch.arange(1.0, 25.0)
    signs = torch.from_numpy(np.where(WANTED, 1.0, -1.0)).flatten()
    sizes[wrong] /= 100
    signs[wrong] *= -1
    return (sizes * signs).float().reshape(3, 8)


def test_flips_that_help_stay_and_others_are_taken_back() -> None:
    refined = refine(logits_with([20, 3, 11]), distance, num_candidates=6)
    assert (refined.before, refined.after, refined.num_tried) == (3.0, 0.0, 6)
    assert {8 * layer + head for layer, head in refined.flipped} == {3, 11, 20}
    assert np.array_equal(binarise(refined.logits).heads, WANTED)


def test_only_the_least_decided_heads_are_tried() -> None:
    logits = logits_with([20])
    logits[2, 4] *= 10_000  # head 20 is wrong, and sure of it
    refined = refine(logits, distance, num_candidates=23)
    assert refined.flipped == ()
    assert torch.equal(refined.logits, logits)


def test_a_gain_may_be_asked_for() -> None:
    assert refine(logits_with([20, 3]), distance, num_candidates=24, min_gain=1.0).flipped == ()


def test_a_head_at_zero_counts_as_active_and_can_be_silenced() -> None:
    refined = refine(torch.zeros(1, 2), lambda head_mask: float(head_mask.heads[0, 1]), num_candidates=2)
    assert refined.flipped == ((0, 1),)
    assert binarise(refined.logits).num_active == 1


def test_the_last_head_is_never_silenced() -> None:
    refined = refine(torch.ones(1, 2), lambda head_mask: float(head_mask.num_active), num_candidates=2)
    assert binarise(refined.logits).num_active == 1


@pytest.mark.parametrize("dev", ["train.jsonl", None])
def test_a_recipe_refines_on_its_development_data_alone(
    toy_family: ModelFamily, make_recipe: MakeRecipe, dev: str | None
) -> None:
    plain = make_recipe(steps=6, init_mean=0.5, init_std=0.5)
    before = MaskFile.load(train(plain, family=toy_family)).head_mask
    path = plain.data.train.parent / dev if dev else plain.data.valid
    config = make_recipe(
        steps=6, init_mean=0.5, init_std=0.5, refine={"num_candidates": 24, "dev": path if dev else None}
    )
    mask_file = MaskFile.load(train(config, family=toy_family))

    assert path is not None
    examples = load_manifest(path, config.task).examples
    data = AnswerData(toy_family, AudioEmbeddings(toy_family, examples, keep=True))

    def loss(head_mask: HeadMask) -> float:
        return mean_loss(toy_family, data, head_mask, batch_size=4, reduction="sample_sum")

    record = mask_file.training["refine"]
    assert isinstance(record, dict)
    num_changed = int((mask_file.head_mask.heads != before.heads).sum())
    assert record["num_flipped"] == num_changed > 0
    assert record["before"] == pytest.approx(loss(before), rel=1e-4)
    assert record["after"] == pytest.approx(loss(mask_file.head_mask), rel=1e-4)
    assert loss(mask_file.head_mask) < loss(before)
