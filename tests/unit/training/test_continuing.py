"""Going on from a head mask that exists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lalm import tiny
from lalm.errors import HeadMaskError
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from tests.command_line import Cli
from training.checkpoint import CHECKPOINT, LOG
from training.config import TrainConfig
from training.continuing import initial_logits, recipe_to_continue
from training.errors import CheckpointError, ConfigError, ManifestError
from training.manifest import load_manifest
from training.splits import hold_out, load_any
from training.train import train

MakeRecipe = Callable[..., TrainConfig]
TINY_MASK = Path(__file__).parents[3] / "masks" / tiny.NAME / "gr.json"


def first_losses(config: TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.run_folder / LOG).read_text().splitlines()]


def test_a_run_goes_on_with_its_logits(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    first = make_recipe(steps=6, lr=0.4, lr_start=0.4, run={"folder": tmp_path / "first"})
    train(first, family=toy_family)
    kept = torch.load(first.run_folder / CHECKPOINT, weights_only=True)["selected"]["logits"]
    config = make_recipe(steps=1, run={"init_from": first.run_folder})
    logits = initial_logits(config, toy_family)
    assert logits is not None
    assert torch.equal(logits, kept)


def test_a_mask_file_gives_a_logit_of_one_size_for_each_bit(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    path = train(make_recipe(steps=6, init_mean=0.2, init_std=0.5), family=toy_family)
    heads = MaskFile.load(path).head_mask.heads
    assert 0 < heads.sum() < heads.size
    logits = initial_logits(make_recipe(init_mean=-1.5, run={"init_from": path}), toy_family)
    assert logits is not None
    assert np.array_equal(logits.numpy(), np.where(heads, 1.5, -1.5).astype(np.float32))


def test_the_head_mask_to_go_on_from_is_kept_unless_a_better_one_is_found(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = train(make_recipe(steps=8, init_mean=0.2, init_std=0.5), family=toy_family)
    before = MaskFile.load(path)
    # Nothing is learnt at this rate.
    config = make_recipe(steps=2, lr=1e-9, lr_start=1e-9, run={"init_from": path, "folder": tmp_path / "on"})
    after = MaskFile.load(train(config, family=toy_family))
    assert after.heads == before.heads
    assert after.training["selected_step"] == 0
    assert after.training["init_from"] == "gr.json"
    start = first_losses(config)[0]
    assert start["step"] == 0
    assert start["valid_loss"] == pytest.approx(before.training["validation_loss"], rel=1e-4)


def test_what_belongs_to_another_model_or_task_is_refused(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(HeadMaskError):
        initial_logits(make_recipe(run={"init_from": TINY_MASK}), toy_family)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        initial_logits(make_recipe(run={"init_from": tmp_path}), toy_family)
    path = train(make_recipe(steps=1), family=toy_family)
    mask_file = MaskFile.load(path)
    other = mask_file.task.output.model_copy(update={"labels": ("yes", "no")})
    task = mask_file.task.model_copy(update={"output": other})
    mask_file.model_copy(update={"task": task}).save(path)
    with pytest.raises(ConfigError, match="another form"):
        initial_logits(make_recipe(run={"init_from": path}), toy_family)


def test_a_mask_of_the_model_before_its_weights_changed_is_a_start_where_that_is_said(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    path = train(make_recipe(steps=1), family=toy_family)
    mask_file = MaskFile.load(path)
    before = mask_file.model.model_copy(update={"fingerprint": f"sha256:{0:064}"})
    mask_file.model_copy(update={"model": before}).save(path)
    with pytest.raises(HeadMaskError, match="fingerprint"):
        initial_logits(make_recipe(run={"init_from": path}), toy_family)
    run = {"init_from": path, "init_other_weights": True}
    logits = initial_logits(make_recipe(run=run), toy_family)
    assert logits is not None
    assert torch.equal(logits > 0, torch.from_numpy(mask_file.head_mask.heads))
    with pytest.raises(HeadMaskError, match="made for"):
        initial_logits(make_recipe(run={**run, "init_from": TINY_MASK}), toy_family)


def test_a_mask_file_of_the_embedded_model_and_a_folder_make_a_recipe(tmp_path: Path) -> None:
    config = recipe_to_continue(None, TINY_MASK, tmp_path, {"optim.steps": 7})
    assert config.task == MaskFile.load(TINY_MASK).task
    assert config.optim.steps == 7
    assert config.data.train == tmp_path
    assert config.data.valid is None
    assert config.run.init_from == TINY_MASK
    assert config.out == Path("runs/gr-continued/gr.json")
    assert Path(config.checkpoint) == tiny.CHECKPOINT


def test_a_run_that_goes_on_spares_the_folder_of_the_first(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tmp_path / "gr.toml"
    recipe.write_text(
        'preset = "short"\ncheckpoint = "x"\nout = "gr.json"\n[task]\nname = "gr"\ntitle = "Gender"\n'
        'max_new_tokens = 4\noutput = { kind = "label", labels = ["male", "female"] }\n'
        '[data]\ntrain = "a.jsonl"\nvalid = "b.jsonl"\n'
    )
    config = recipe_to_continue(recipe, tmp_path, None, {})
    assert config.run_folder == Path("runs/gr-continued")
    assert (config.data.train, config.data.valid) == (Path("a.jsonl"), Path("b.jsonl"))
    named = recipe_to_continue(recipe, tmp_path, tmp_path / "feedback", {"run.folder": "here"})
    assert (named.run_folder, named.data.train) == (Path("here"), tmp_path / "feedback")
    assert recipe_to_continue(recipe, None, None, {}).run_folder == Path("runs/gr")


def test_a_feedback_folder_gives_what_it_has_of_the_task(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    config = make_recipe()
    lines = config.data.train.read_text().splitlines()
    feedback = tmp_path / "feedback"
    feedback.mkdir()
    (feedback / "a.jsonl").write_text("\n".join(line.replace('"train', '"../train') for line in lines[:3]))
    other = json.dumps({"path": "../train-0.wav", "text": "hello", "task": "asr"})
    (feedback / "b.jsonl").write_text(other + "\n" + lines[5].replace('"train', '"../train') + "\n")
    manifest = load_any(feedback, config.task)
    assert [example.text for example in manifest.examples] == ["male", "female", "male", "female"]
    (feedback / "a.jsonl").unlink()
    assert load_any(feedback, config.task).sha256 != manifest.sha256
    (feedback / "b.jsonl").write_text(other)
    with pytest.raises(ManifestError, match="task 'gr'"):
        load_any(feedback, config.task)


def test_held_out_recordings_are_not_trained_on(make_recipe: MakeRecipe) -> None:
    config = make_recipe()
    again = config.data.train.read_text().splitlines()
    config.data.train.write_text("\n".join(again + again[:6]))  # some recordings have two annotations
    manifest = load_manifest(config.data.train, config.task)
    train_part, valid_part = hold_out(manifest, 0.25)
    recordings = [{example.recordings for example in part.examples} for part in (train_part, valid_part)]
    assert not recordings[0] & recordings[1]
    assert len(recordings[1]) == 3
    assert len(train_part.examples) + len(valid_part.examples) == 18
    assert hold_out(manifest, 0.25) == (train_part, valid_part)
    single = type(manifest)(manifest.path, manifest.sha256, manifest.examples[:1])
    with pytest.raises(ManifestError, match="too little to hold out"):
        hold_out(single, 0.5)


def test_the_command_says_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("train")
    assert (code, err) == (
        1,
        "ahamask: without a recipe, --resume-from with a mask file and --manifest are needed\n",
    )
    code, _, err = cli("train", "--resume-from", tmp_path / "none.json", "--manifest", tmp_path)
    assert code == 2
    assert "none.json" in err
