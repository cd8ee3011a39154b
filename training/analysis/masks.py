"""Head masks to be analysed: from mask files, folders of them, or run folders with their logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lalm.head_mask import HeadMask, MaskFile
from training.checkpoint import CHECKPOINT
from training.errors import CheckpointError, ConfigError
from training.mask_logits import binarise


@dataclass(frozen=True)
class NamedMask:
    """A head mask under the name it has in tables and figures; `task` is empty where it is not known.

    logits: float32 [num_layers, num_heads], where it comes from a run folder.
    """

    name: str
    task: str
    head_mask: HeadMask
    logits: NDArray[np.float32] | None = None


def load_masks(sources: Sequence[Path]) -> list[NamedMask]:
    """Every head mask of `sources`; masks of one name are told apart by their folders.

    Raises:
        HeadMaskError: a mask file that cannot be used.
        CheckpointError: a run folder whose checkpoint cannot be read.
        ConfigError: nothing found, or head masks of different models.
    """
    found: list[tuple[Path, NamedMask]] = []
    fingerprints: set[str] = set()
    for path in _files(sources):
        if path.name == CHECKPOINT:
            logits = run_logits(path.parent)
            head_mask = binarise(torch.from_numpy(logits))
            found.append((path, NamedMask(path.parent.name, "", head_mask, logits)))
        else:
            mask_file = MaskFile.load(path)
            fingerprints.add(mask_file.model.fingerprint)
            found.append((path, NamedMask(mask_file.task.name, mask_file.task.name, mask_file.head_mask)))
    shapes = {mask.head_mask.heads.shape for _, mask in found}
    if not found:
        raise ConfigError(f"no head mask in {', '.join(map(str, sources))}")
    if len(fingerprints) > 1 or len(shapes) > 1:
        raise ConfigError("the head masks are of different models, their heads cannot be compared")
    return _distinct(found)


def run_logits(folder: Path) -> NDArray[np.float32]:
    """The mask logits that a training kept, float32 [num_layers, num_heads].

    Raises:
        CheckpointError: there is no checkpoint, it cannot be read, or nothing was kept yet.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        selected = content["selected"]
    except Exception as error:  # torch.load raises whatever a damaged file makes it raise
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
    if selected is None:
        raise CheckpointError(f"{path}: the training has kept no head mask yet")
    logits: NDArray[np.float32] = selected["logits"].float().numpy()
    return logits


def _files(sources: Iterable[Path]) -> Iterator[Path]:
    for source in sources:
        if not source.is_dir():
            yield source
        elif (source / CHECKPOINT).is_file():
            yield source / CHECKPOINT
        else:
            runs = sorted(source.rglob(CHECKPOINT))
            yield from runs or sorted(source.rglob("*.json"))


def _distinct(found: list[tuple[Path, NamedMask]]) -> list[NamedMask]:
    names = [mask.name for _, mask in found]
    masks: list[NamedMask] = []
    for number, (path, mask) in enumerate(found, start=1):
        name = mask.name
        if names.count(name) > 1:
            folder = path.parent.parent.name if path.name == CHECKPOINT else path.parent.name
            name = f"{mask.name} ({folder})"
        if name in {other.name for other in masks}:
            name = f"{name} {number}"
        masks.append(NamedMask(name, mask.task, mask.head_mask, mask.logits))
    return masks
