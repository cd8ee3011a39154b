"""However a step is cut, it is the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.checkpoint import CHECKPOINT, LOG
from training.config import TrainConfig
from training.errors import CheckpointError, TrainingError
from training.memory import gradient_checkpointing
from training.processes import Processes
from training.train import train

MakeRecipe = Callable[..., TrainConfig]
REPOSITORY = Path(__file__).parents[3]
PROCESS_LIMIT_S = 300


def log_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_folder / LOG).read_text().splitlines()]


def curve_of(config: TrainConfig) -> list[float]:
    return [value for line in log_of(config) for key, value in line.items() if key.endswith("loss")]


def logits_of(config: TrainConfig) -> torch.Tensor:
    logits: torch.Tensor = torch.load(config.run_folder / CHECKPOINT, weights_only=True)["logits"]
    return logits


def same_training(one: TrainConfig, other: TrainConfig) -> None:
    assert curve_of(one) == pytest.approx(curve_of(other), rel=1e-4)
    torch.testing.assert_close(logits_of(one), logits_of(other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", ["token_mean", "sample_sum"])
def test_accumulated_passes_make_the_step_of_the_whole_batch(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, loss: str
) -> None:
    penalty = {"sparsity_lambda": 0.1, "target_num_heads": 9, "loss": loss}
    whole = make_recipe(run={"folder": tmp_path / "whole"}, steps=6, batch_size=8, **penalty)
    parts = make_recipe(steps=6, batch_size=2, gradient_accumulation_steps=4, **penalty)
    for config in (whole, parts):
        train(config, family=toy_family)
    same_training(parts, whole)


def test_a_training_goes_on_with_its_batch_cut_otherwise_but_with_no_other_batch(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    train(make_recipe(steps=4, batch_size=4), family=toy_family)
    train(make_recipe(steps=4, batch_size=2, gradient_accumulation_steps=2), family=toy_family, resume=True)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(
            make_recipe(steps=4, batch_size=4, gradient_accumulation_steps=2), family=toy_family, resume=True
        )


def test_checkpointed_activations_give_the_same_training(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    forwards: list[int] = []
    handle = toy_family.decoder.layers[1].mlp.register_forward_pre_hook(lambda *_: forwards.append(1))
    counts = []
    configs = [
        make_recipe(run={"folder": tmp_path / str(on), "gradient_checkpointing": on}, steps=3)
        for on in (False, True)
    ]
    for config in configs:
        forwards.clear()
        train(config, family=toy_family)
        counts.append(len(forwards))
    handle.remove()
    same_training(configs[1], configs[0])
    assert counts[1] == counts[0] + 3  # each step once more; validation has no gradient
    assert not any(module.training for module in toy_family.decoder.modules())
    assert not any(
        getattr(module, "gradient_checkpointing", False) for module in toy_family.decoder.modules()
    )


def test_a_decoder_without_checkpointing_is_refused() -> None:
    with (
        pytest.raises(TrainingError, match="SimpleNamespace has none"),
        gradient_checkpointing(SimpleNamespace(), enabled=True),
    ):
        pass


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_autocast_computes_in_half_and_trains_like_float32(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, amp: str
) -> None:
    dtypes: set[torch.dtype] = set()
    layer = toy_family.decoder.layers[0].mlp.down_proj
    handle = layer.register_forward_hook(lambda _module, _args, output: dtypes.add(output.dtype))
    exact = make_recipe(run={"folder": tmp_path / "exact"}, steps=4)
    train(exact, family=toy_family)
    dtypes.clear()
    half = make_recipe(run={"amp": amp}, steps=4)
    train(half, family=toy_family)
    handle.remove()
    assert dtypes == {getattr(torch, amp)}
    assert curve_of(half) == pytest.approx(curve_of(exact), rel=0.1)
    saved = torch.load(half.run_folder / CHECKPOINT, weights_only=True)
    assert saved["logits"].dtype == torch.float32
    assert bool(saved["scaler"]) == (amp == "float16")


def test_an_overflow_in_float16_skips_the_step_and_lowers_the_scale(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe(run={"amp": "float16"}, steps=1, init_std=0.0)
    handle = toy_family.lm_head.register_full_backward_hook(
        lambda _module, gradients, _outputs: (gradients[0] * float("inf"),)
    )
    train(config, family=toy_family)
    handle.remove()
    saved = torch.load(config.run_folder / CHECKPOINT, weights_only=True)
    assert torch.equal(saved["logits"], torch.full((3, 8), config.optim.init_mean))
    assert saved["scaler"]["scale"] < 65_536


def test_processes_share_without_gap_or_overlap() -> None:
    shares = [Processes(rank, 3).share(range(8)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(8))
    assert Processes(1, 2, local_rank=1).place("cuda") == "cuda:1"
    assert Processes(1, 2, local_rank=1).place("cpu") == "cpu"
    assert Processes().place("cuda") == "cuda"


def test_two_processes_make_the_training_of_one_with_twice_the_batch(
    toy_family: ModelFamily, toy_checkpoint: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """`accelerate launch` on two CPU processes (gloo)."""
    one = make_recipe(run={"folder": tmp_path / "one"}, steps=6, batch_size=4)
    train(one, family=toy_family)
    expected = MaskFile.load(one.out).head_mask
    one.out.unlink()
    two = make_recipe(steps=6, batch_size=2)
    recipe = tmp_path / "gr.toml"
    recipe.write_text(toml_of(two, toy_checkpoint))
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    quiet = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, *quiet, "-m", "ahamask", "train", str(recipe)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(two.out)]
    same_training(two, one)
    assert MaskFile.load(two.out).head_mask == expected


def toml_of(config: TrainConfig, checkpoint: Path) -> str:
    """A recipe with the settings of `config` and another checkpoint, as a file's text."""
    optim = {"steps": config.optim.steps, "batch_size": config.optim.batch_size}
    sections = {
        "task": {"name": "gr", "title": "Gender", "max_new_tokens": 4},
        "task.output": {"kind": "label", "labels": ["male", "female"]},
        "data": {"train": str(config.data.train), "valid": str(config.data.valid)},
        "optim": optim,
        "run": {"folder": str(config.run_folder), "valid_every": 7, "checkpoint_every": 6},
    }
    lines = ['preset = "short"', f"checkpoint = {json.dumps(str(checkpoint))}", f'out = "{config.out}"']
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)
