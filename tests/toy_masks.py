"""Random head masks of two tasks for the toy checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lalm.head_mask import ModelIdentity
from tests.mask_files import random_mask, write_mask_file

OUTPUTS: dict[str, dict[str, Any]] = {
    "asr": {"kind": "text"},
    "gr": {"kind": "label", "labels": ["female", "male"]},
}


def write_toy_masks(folder: Path, identity: ModelIdentity) -> None:
    """A mask file for each of OUTPUTS."""
    for number, (name, output) in enumerate(OUTPUTS.items()):
        head_mask = random_mask(18, (identity.num_layers, identity.num_heads), number)
        write_mask_file(folder, name, identity, head_mask, output=output, max_new_tokens=8)
