from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile
from training.batches import AnswerData, AudioEmbeddings
from training.checkpoint import CHECKPOINT, LOG, has_checkpoint
from training.config import TrainConfig
from training.errors import CheckpointError, TrainingError
from training.manifest import load_manifest
from training.mask_logits import binarise
from training.objective import answer_loss, mean_loss
from training.train import subset, train

MakeRecipe = Callable[..., TrainConfig]
REPOSITORY = Path(__file__).parents[3]


def log_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_folder / LOG).read_text().splitlines()]


def state_of(config: TrainConfig) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(config.run_folder / CHECKPOINT, weights_only=True)
    return state


def interrupt_in_step(family: ModelFamily, step: int, seen: list[int]) -> torch.utils.hooks.RemovableHandle:
    """Raise SIGINT in the middle of the forward pass of `step` (from 1), gradients on."""

    def hook(*_: Any) -> None:
        if torch.is_grad_enabled():
            seen.append(1)
            if len(seen) == step:
                signal.raise_signal(signal.SIGINT)

    return family.decoder.register_forward_hook(hook)


def test_two_steps_lower_the_loss_and_write_a_mask_file(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    # All heads start just active and the noise is small, so that two steps can cross the threshold.
    config = make_recipe(
        steps=2, batch_size=12, init_mean=0.02, init_std=0.0, lr=0.05, tau_start=0.3, lr_decay_fraction=0.0
    )
    before = [parameter.clone() for parameter in toy_family.model.parameters()]
    path = train(config, family=toy_family)

    mask_file = MaskFile.load(path)
    mask_file.check_model(toy_family.identity, path)
    assert 0 < mask_file.head_mask.num_active < mask_file.head_mask.total
    examples = load_manifest(config.data.train, config.task).examples
    data = AnswerData(toy_family, AudioEmbeddings(toy_family, examples, keep=True))
    losses = [
        mean_loss(toy_family, data, head_mask, batch_size=4, reduction="sample_sum")
        for head_mask in (HeadMask.ones(3, 8), mask_file.head_mask)
    ]
    assert losses[1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, toy_family.model.parameters(), strict=True))


def test_the_mask_file_says_how_it_was_made(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe(steps=2, run={"seed": 3})
    record = MaskFile.load(train(config, family=toy_family)).training
    assert (record["recipe"], record["preset"], record["seed"]) == ("gr.toml", "short", 3)
    optim = record["optim"]
    assert isinstance(optim, dict)
    assert (optim["steps"], optim["tau_end"], optim["sparsity_lambda"]) == (2, 0.3, 1e-4)
    assert record["train_manifest_sha256"] == load_manifest(config.data.train, config.task).sha256
    assert (record["num_train_examples"], record["num_valid_examples"]) == (12, 5)


@pytest.mark.parametrize("stop_at", [5, 14])
def test_an_interrupted_training_resumes_to_the_bit(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, stop_at: int
) -> None:
    whole = make_recipe(run={"folder": tmp_path / "whole"})
    train(whole, family=toy_family)
    expected = whole.out.read_bytes()

    parts = make_recipe()
    whole.out.unlink()
    handle = interrupt_in_step(toy_family, stop_at, [])
    with pytest.raises(KeyboardInterrupt):
        train(parts, family=toy_family)
    handle.remove()
    assert state_of(parts)["step"] == stop_at
    assert not parts.out.exists()
    train(parts, family=toy_family, resume=True)

    assert parts.out.read_bytes() == expected
    one, other = state_of(whole), state_of(parts)
    assert torch.equal(one["logits"], other["logits"])
    assert torch.equal(one["generator"], other["generator"])
    for moment in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(one["optimizer"]["state"][0][moment], other["optimizer"]["state"][0][moment])
    assert log_of(parts) == log_of(whole)


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch
from lalm.families import load_family
from training.config import TrainConfig
from training.train import train

config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
saved = []

def save(content, path):
    saved.append(path)
    if len(saved) == 2:
        Path(path).write_bytes(b"half of a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    real_save(content, path)

real_save, torch.save = torch.save, save
torch.set_num_threads(1)
train(config, family=load_family(sys.argv[2]))
"""


def test_a_training_killed_while_it_saves_resumes_to_the_bit(
    toy_family: ModelFamily, toy_checkpoint: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    whole = make_recipe(run={"folder": tmp_path / "whole"})
    train(whole, family=toy_family)
    expected = whole.out.read_bytes()
    whole.out.unlink()

    parts = make_recipe()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(parts.model_dump_json())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(recipe), str(toy_checkpoint)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert state_of(parts)["step"] == 6
    assert len(log_of(parts)) == 12
    train(parts, family=toy_family, resume=True)

    assert parts.out.read_bytes() == expected
    assert log_of(parts) == log_of(whole)
    assert torch.equal(state_of(parts)["logits"], state_of(whole)["logits"])
    assert [path.name for path in parts.run_folder.iterdir() if "checkpoint" in path.name] == [CHECKPOINT]


def test_the_handler_of_sigint_is_put_back(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(make_recipe(steps=1), family=toy_family)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_log_of_steps_after_the_checkpoint_is_written_again(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe(steps=6, run={"checkpoint_every": 4})
    seen: list[int] = []

    def die_in_step_6(*_: Any) -> None:
        seen.append(1)
        if torch.is_grad_enabled() and len(seen) == 6:
            raise RuntimeError("the machine died")

    handle = toy_family.decoder.register_forward_hook(die_in_step_6)
    with pytest.raises(RuntimeError, match="the machine died"):
        train(config, family=toy_family)
    handle.remove()
    assert [line["step"] for line in log_of(config)] == [1, 2, 3, 4, 5]
    assert state_of(config)["step"] == 4
    train(config, family=toy_family, resume=True)
    assert [line["step"] for line in log_of(config)] == [1, 2, 3, 4, 5, 6]


def test_another_recipe_cannot_be_resumed(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    train(make_recipe(steps=2), family=toy_family)
    with pytest.raises(CheckpointError, match=r"another recipe \(optim differ\)"):
        train(make_recipe(steps=3), family=toy_family, resume=True)


def test_no_checkpoint_and_a_damaged_one_cannot_be_resumed(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe(steps=2)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(config, family=toy_family, resume=True)
    config.run_folder.mkdir(exist_ok=True)
    (config.run_folder / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        train(config, family=toy_family, resume=True)


def test_the_seed_determines_the_mask(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    def logits(seed: int) -> torch.Tensor:
        config = make_recipe(steps=3, run={"seed": seed})
        train(config, family=toy_family)
        result: torch.Tensor = state_of(config)["logits"]
        return result

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_of_several_seeds_the_best_is_written_and_each_kept(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    alone = make_recipe(steps=3, run={"seed": 5, "folder": tmp_path / "alone"})
    train(alone, family=toy_family)
    config = make_recipe(steps=3, run={"seeds": [4, 5, 6]})
    best = MaskFile.load(train(config, family=toy_family))
    masks = {seed: MaskFile.load(config.run_folder / f"seed-{seed}" / "gr.json") for seed in (4, 5, 6)}
    values = {seed: mask_file.training["validation_loss"] for seed, mask_file in masks.items()}
    assert best.training["seeds"] == {str(seed): value for seed, value in values.items()}
    assert best.training["seed"] == min(values, key=lambda seed: values[seed])
    assert best.heads == masks[best.training["seed"]].heads
    assert torch.equal(state_of(config.by_seed[1])["logits"], state_of(alone)["logits"])


def test_several_seeds_resume_where_they_were_interrupted(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    whole = make_recipe(steps=6, run={"seeds": [0, 1, 2], "folder": tmp_path / "whole"})
    expected = train(whole, family=toy_family).read_bytes()
    config = make_recipe(steps=6, run={"seeds": [0, 1, 2]})
    handle = interrupt_in_step(toy_family, 9, [])  # the third step of the second seed
    with pytest.raises(KeyboardInterrupt):
        train(config, family=toy_family)
    handle.remove()
    assert [has_checkpoint(seeded.run_folder) for seeded in config.by_seed] == [True, True, False]
    assert train(config, family=toy_family, resume=True).read_bytes() == expected
    assert log_of(config.by_seed[1]) == log_of(whole.by_seed[1])


def test_patience_ends_a_training_that_finds_nothing_better(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    # Nothing is learnt, so that no validation is better than the first; the annealing ends after step 5.
    still: dict[str, Any] = {"lr": 1e-9, "lr_start": 1e-9, "tau_fraction": 0.25}
    config = make_recipe(steps=20, run={"valid_every": 2, "patience": 3}, **still)
    path = train(config, family=toy_family)
    assert log_of(config)[-1]["step"] == 10  # 6, 8 and 10 count
    assert MaskFile.load(path).training["selected_step"] == 2
    before = path.read_bytes()
    assert train(config, family=toy_family, resume=True).read_bytes() == before
    assert log_of(config)[-1]["step"] == 10


def test_the_best_mask_on_validation_is_kept(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe(steps=20, lr=0.4, lr_start=0.4, run={"valid_every": 2})
    mask_file = MaskFile.load(train(config, family=toy_family))
    losses = {line["step"]: line["valid_loss"] for line in log_of(config) if "valid_loss" in line}
    assert list(losses) == list(range(2, 21, 2))
    assert mask_file.training["selected_step"] == min(losses, key=losses.__getitem__)
    assert mask_file.training["validation_loss"] == min(losses.values())


def test_the_last_mask_is_kept_where_the_recipe_says_so(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe(lr=0.4, lr_start=0.4, run={"valid_every": 2, "keep_best": False})
    mask_file = MaskFile.load(train(config, family=toy_family))
    assert mask_file.training["selected_step"] == 20
    assert mask_file.head_mask == binarise(state_of(config)["logits"])


def test_selection_by_greedy_answers(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe(steps=2, run={"valid_every": 1, "select_by": "score"})
    mask_file = MaskFile.load(train(config, family=toy_family))
    scores = [line["valid_score"] for line in log_of(config)]
    assert mask_file.training["validation_score"] == max(scores)


def test_a_mask_without_a_head_is_never_written(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe(steps=2, init_mean=-20.0)
    with pytest.raises(TrainingError, match="every head mask found was empty"):
        train(config, family=toy_family)
    assert not config.out.exists()


def test_sparsity_lowers_the_number_of_active_heads(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    def active(sparsity_lambda: float) -> int:
        config = make_recipe(
            init_mean=0.95, init_std=0.3, sparsity_lambda=sparsity_lambda, run={"keep_best": False}
        )
        return MaskFile.load(train(config, family=toy_family)).head_mask.num_active

    assert active(10.0) < active(0.0)


def test_a_target_pulls_the_number_of_active_heads_both_ways(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    def active(target_num_heads: int | None) -> int:
        config = make_recipe(
            init_mean=0.95,
            init_std=0.3,
            sparsity_lambda=10.0,
            target_num_heads=target_num_heads,
            run={"keep_best": False},
        )
        return MaskFile.load(train(config, family=toy_family)).head_mask.num_active

    identity = toy_family.identity
    assert active(None) == active(1) < active(identity.num_layers * identity.num_heads)


def test_audio_that_is_not_kept_gives_the_same_losses(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    losses = []
    for cached in (True, False):
        config = make_recipe(data={"cache_audio": cached})
        examples = load_manifest(config.data.valid, config.task).examples
        data = AnswerData(toy_family, AudioEmbeddings(toy_family, examples, keep=cached))
        list(data.audio.warm())
        losses.append(mean_loss(toy_family, data, None, batch_size=2, reduction="token_mean"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_is_that_of_plain_next_token_prediction(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    """A padded batch against the whole model, one example at a time, with every logit computed."""
    examples = load_manifest(make_recipe().data.valid, make_recipe().task).examples
    data = AnswerData(toy_family, AudioEmbeddings(toy_family, examples, keep=True))
    batch = data.batch(range(len(examples)))
    loss = answer_loss(toy_family, batch, None)

    expected = num_tokens = 0.0
    for number, example in enumerate(examples):
        ids = toy_family.encode_text(example.text)
        prompt = toy_family.embed_prompt(data.audio.get([number])[0])
        answer = toy_family.decoder.get_input_embeddings()(torch.tensor(ids))
        logits = toy_family.model(inputs_embeds=torch.cat([prompt, answer])[None]).logits[0]
        probabilities = logits[len(prompt) - 1 :].softmax(-1)
        end = probabilities[-1, list(toy_family.eos_token_ids)].sum()
        chosen = [probabilities[position, token] for position, token in enumerate(ids)]
        expected -= sum(value.log().item() for value in [*chosen, end])
        num_tokens += len(ids) + 1
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert (loss.num_tokens, loss.num_samples) == (num_tokens, 5)
    assert loss.reduced("token_mean").item() == pytest.approx(expected / num_tokens, rel=1e-4)
    assert loss.reduced("sample_sum").item() == pytest.approx(expected / 5, rel=1e-4)


def test_each_row_is_trained_under_its_own_gate(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    examples = load_manifest(make_recipe().data.valid, make_recipe().task).examples
    data = AnswerData(toy_family, AudioEmbeddings(toy_family, examples, keep=True))
    gate = torch.ones(3, 2, 8, requires_grad=True)
    batch = data.batch([0, 1])
    output = toy_family.decoder(inputs_embeds=batch.inputs_embeds, use_cache=False, head_gate=gate)
    output.last_hidden_state[0].square().sum().backward()
    assert gate.grad is not None
    assert gate.grad[:, 0].abs().min() > 0
    assert not gate.grad[:, 1].any()


def test_tensorboard_files_are_written_on_demand(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe(steps=1)
    train(config, family=toy_family)
    assert not list(config.run_folder.glob("events.*"))
    config = make_recipe(steps=1, run={"tensorboard": True})
    train(config, family=toy_family)
    assert len(list(config.run_folder.glob("events.*"))) == 1


def test_a_subset_is_always_the_same_and_in_order(make_recipe: MakeRecipe) -> None:
    examples = load_manifest(make_recipe().data.train, make_recipe().task).examples
    chosen = subset(examples, 5)
    assert len(chosen) == 5
    assert chosen == subset(examples, 5)
    assert [example.line for example in chosen] == sorted(example.line for example in chosen)
    assert subset(examples, None) == subset(examples, 99) == examples
