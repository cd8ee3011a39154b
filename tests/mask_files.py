"""Mask files of tasks that a test makes up, for a model or without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lalm.head_mask import HeadMask, MaskFile, ModelIdentity, new_mask_file
from lalm.task import TaskSpec


def identity(num_layers: int, num_heads: int, **changes: Any) -> ModelIdentity:
    return ModelIdentity(
        **{
            "family": "salmonn",
            "name": "SALMONN-13B",
            "fingerprint": "sha256:" + "0" * 64,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        | changes
    )


def mask_file(name: str, head_mask: HeadMask, model: ModelIdentity | None = None, **output: Any) -> MaskFile:
    return MaskFile(
        task=TaskSpec.model_validate(
            {"name": name, "title": name, "output": output or {"kind": "text"}, "max_new_tokens": 8}
        ),
        model=model or identity(head_mask.num_layers, head_mask.num_heads),
        heads=tuple(head_mask.to_strings()),
        training={},
        evaluation={"wer": 3.25},
    )


def write_mask_file(folder: Path, name: str, model: ModelIdentity, head_mask: HeadMask, **task: Any) -> None:
    """`<name>.json` for a task whose answer is a text, where `task` does not say otherwise."""
    path = folder / f"{name}.json"
    defaults = {"name": name, "title": name, "output": {"kind": "text"}, "max_new_tokens": 12}
    spec = TaskSpec.model_validate(defaults | task)
    new_mask_file(path, spec, model, head_mask, training={}).save(path)


def random_mask(num_active: int, shape: tuple[int, int] = (3, 16), seed: int = 0) -> HeadMask:
    return HeadMask.random(num_active, np.random.default_rng(seed), shape)
