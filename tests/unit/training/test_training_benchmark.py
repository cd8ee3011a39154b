from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.plain_training import plain_decoder
from benchmarks.training import measure
from lalm.family import ModelFamily
from training.config import TrainConfig

MakeRecipe = Callable[..., TrainConfig]


@pytest.mark.parametrize("loss", ["sample_sum", "token_mean"])
def test_the_plain_loop_has_the_losses_of_the_first_epoch(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, loss: str
) -> None:
    config = make_recipe(
        steps=100, init_mean=0.5, loss=loss, sparsity_lambda=0.1, data={"cache_folder": tmp_path / "cache"}
    )
    ours, plain = (measure(kind, config, toy_family) for kind in ("ours", "plain"))
    assert (ours["num_steps"], len(ours["losses"])) == (6, 3)  # two epochs of three batches
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-3)


def test_the_decoder_is_put_back(toy_family: ModelFamily) -> None:
    inputs = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    before = toy_family.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    with plain_decoder(toy_family.decoder) as outputs:
        for output in outputs:
            output.gate = torch.ones(2, 8)
        inside = toy_family.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(inside, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(toy_family.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state, before)
