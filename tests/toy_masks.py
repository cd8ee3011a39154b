"""Random head masks of two tasks for the toy checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import TaskSpec

OUTPUTS: dict[str, dict[str, Any]] = {
    "asr": {"kind": "text"},
    "gr": {"kind": "label", "labels": ["female", "male"]},
}


def write_toy_masks(folder: Path, identity: ModelIdentity) -> None:
    """A mask file for each of OUTPUTS."""
    for number, (name, output) in enumerate(OUTPUTS.items()):
        task = TaskSpec.model_validate({"name": name, "title": name, "output": output, "max_new_tokens": 8})
        shape = (identity.num_layers, identity.num_heads)
        heads = tuple(HeadMask.random(18, np.random.default_rng(number), shape).to_strings())
        MaskFile(task=task, model=identity, heads=heads, training={}, evaluation={}).save(
            folder / f"{name}.json"
        )
