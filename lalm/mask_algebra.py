"""What can be said of several head masks together, and the head masks that follow from them.

    overlap    which heads two head masks share
    combine    the intersection, the union or the majority of several
    scatter    a random head mask with as many active heads

`combine_files` and `random_file` do the same for mask files, and write down where the result came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile, new_mask_file
from lalm.task import TaskSpec
from lalm.validation import reason_of


class Rule(StrEnum):
    """When a head of a combination is active."""

    AND = "and"
    OR = "or"
    MAJORITY = "majority"


@dataclass(frozen=True)
class Overlap:
    """Which heads two head masks share; every array is int [num_layers], a count of heads."""

    both: NDArray[np.int64]
    only_a: NDArray[np.int64]
    only_b: NDArray[np.int64]
    num_heads: int

    @property
    def num_differing(self) -> int:
        """The Hamming distance."""
        return int(self.only_a.sum() + self.only_b.sum())

    @property
    def jaccard(self) -> float:
        """Shared heads over heads that either has; 1 for two head masks without an active head."""
        union = int(self.both.sum()) + self.num_differing
        return int(self.both.sum()) / union if union else 1.0


def overlap(a: HeadMask, b: HeadMask) -> Overlap:
    """Compare two head masks.

    Raises:
        ValueError: of different shapes.
    """
    check_shapes([a, b])
    return Overlap(
        both=(a.heads & b.heads).sum(axis=1),
        only_a=(a.heads & ~b.heads).sum(axis=1),
        only_b=(~a.heads & b.heads).sum(axis=1),
        num_heads=a.num_heads,
    )


def combine(head_masks: Sequence[HeadMask], rule: Rule) -> HeadMask:
    """A head is active if it is in all, in any, or in more than half of `head_masks`.

    Raises:
        ValueError: none given, or of different shapes.
    """
    check_shapes(head_masks)
    votes = np.stack([head_mask.heads for head_mask in head_masks]).sum(axis=0)
    needed = {Rule.AND: len(head_masks), Rule.OR: 1, Rule.MAJORITY: len(head_masks) // 2 + 1}[rule]
    return HeadMask(np.asarray(votes >= needed))


def scatter(head_mask: HeadMask, rng: np.random.Generator, *, per_layer: bool = False) -> HeadMask:
    """A random head mask with as many active heads; with `per_layer`, as many in each layer."""
    if not per_layer:
        return HeadMask.random(head_mask.num_active, rng, head_mask.heads.shape)
    return HeadMask(rng.permuted(head_mask.heads, axis=1))


def combine_files(files: Mapping[Path, MaskFile], rule: Rule, out: Path) -> MaskFile:
    """Mask files of one model as one; the task is the first file's, called as `out` is.

    Raises:
        HeadMaskError: of different models, the combination has no active head, or `out` is not called as a
            task can be.
    """
    first, *_ = files.values()
    for path, mask_file in files.items():
        mask_file.check_model(first.model, path)
    task = _renamed(first.task, out)
    head_mask = combine([mask_file.head_mask for mask_file in files.values()], rule)
    parts: list[JsonValue] = [
        {"file": str(path), "sha256": mask_file.head_mask.sha256} for path, mask_file in files.items()
    ]
    return new_mask_file(out, task, first.model, head_mask, {"combined": rule.value, "of": parts})


def random_file(
    path: Path, mask_file: MaskFile, out: Path, *, seed: int, per_layer: bool = False
) -> MaskFile:
    """A mask file like `mask_file` (read from `path`) with the result of `scatter`, called as `out` is.

    Raises:
        HeadMaskError: `out` is not called as a task can be.
    """
    head_mask = scatter(mask_file.head_mask, np.random.default_rng(seed), per_layer=per_layer)
    training: dict[str, JsonValue] = {
        "random_like": str(path),
        "sha256": mask_file.head_mask.sha256,
        "seed": seed,
        "per_layer": per_layer,
    }
    task = _renamed(mask_file.task, out)
    return new_mask_file(out, task, mask_file.model, head_mask, training)


def check_shapes(head_masks: Sequence[HeadMask]) -> None:
    """Several head masks must be of one shape.

    Raises:
        ValueError: none given, or of different shapes.
    """
    shapes = {(head_mask.num_layers, head_mask.num_heads) for head_mask in head_masks}
    if len(shapes) != 1:
        listed = ", ".join(f"{layers} x {heads}" for layers, heads in sorted(shapes)) or "none"
        raise ValueError(f"head masks of one shape are needed, not {listed}")


def _renamed(task: TaskSpec, out: Path) -> TaskSpec:
    try:
        return TaskSpec.model_validate({**task.model_dump(), "name": out.stem})
    except ValidationError as error:
        raise HeadMaskError(out, reason_of(error)) from error
