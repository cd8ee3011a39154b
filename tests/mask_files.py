"""Mask files without a model behind them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
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


def random_mask(num_active: int, shape: tuple[int, int] = (3, 16), seed: int = 0) -> HeadMask:
    return HeadMask.random(num_active, np.random.default_rng(seed), shape)
