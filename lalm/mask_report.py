"""A head mask file in words: for people at a terminal, and as a record for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile
from lalm.mask_algebra import Overlap, overlap

_BAR_WIDTH = 40
_MAX_VALUE = 400  # characters of one value; --json has all of it


def record(path: Path, mask_file: MaskFile) -> dict[str, Any]:
    """One mask file as JSON values."""
    head_mask = mask_file.head_mask
    return {
        "task": mask_file.task.name,
        "title": mask_file.task.title,
        "model": mask_file.model.model_dump(mode="json"),
        "active_heads": head_mask.num_active,
        "num_heads": head_mask.total,
        "active_heads_by_layer": [int(layer.sum()) for layer in head_mask.heads],
        "packed_bytes": len(head_mask.packed),
        "sha256": head_mask.sha256,
        "evaluation": dict(mask_file.evaluation),
        "training": dict(mask_file.training),
        "file": str(path),
    }


def line(path: Path, mask_file: MaskFile) -> str:
    """One mask file in a list: model, task, active heads, packed size, file, title."""
    head_mask, task = mask_file.head_mask, mask_file.task
    heads, size = f"{head_mask.num_active}/{head_mask.total}", f"{len(head_mask.packed)} B"
    return f"{mask_file.model.name:<20} {task.name:<14} {heads:>11} {size:>7}  {path}  {task.title}"


def page(path: Path, mask_file: MaskFile) -> str:
    """Everything about one mask file, with a bar a layer."""
    task, model, head_mask = mask_file.task, mask_file.model, mask_file.head_mask
    share = 100 * head_mask.num_active / head_mask.total
    lines = [
        f"{task.name}: {task.title}",
        f"  file          {path}",
        f"  model         {model.name} ({model.family}, {model.num_layers} layers x {model.num_heads} heads)",
        f"  fingerprint   {model.fingerprint}",
        f"  output        {task.output.kind.value}, at most {task.max_new_tokens} tokens",
        f"  active heads  {head_mask.num_active} of {head_mask.total} ({share:.1f} %)",
        f"  packed        {len(head_mask.packed)} bytes, sha256 {head_mask.sha256}",
        *_bars(head_mask),
        *_section("evaluation", mask_file.evaluation),
        *_section("training", mask_file.training),
    ]
    return "\n".join(lines)


def diff_record(paths: tuple[Path, Path], files: tuple[MaskFile, MaskFile]) -> dict[str, Any]:
    """Two mask files compared, as JSON values.

    Raises:
        HeadMaskError: of different shapes.
    """
    shared = _overlap(paths, files)
    return {
        "a": _side(paths[0], files[0]),
        "b": _side(paths[1], files[1]),
        "same_model": files[0].model.fingerprint == files[1].model.fingerprint,
        "both": int(shared.both.sum()),
        "only_a": int(shared.only_a.sum()),
        "only_b": int(shared.only_b.sum()),
        "num_differing": shared.num_differing,
        "jaccard": shared.jaccard,
        "by_layer": {
            "both": shared.both.tolist(),
            "only_a": shared.only_a.tolist(),
            "only_b": shared.only_b.tolist(),
        },
    }


def diff_page(paths: tuple[Path, Path], files: tuple[MaskFile, MaskFile]) -> str:
    """Two mask files compared, for people.

    Raises:
        HeadMaskError: of different shapes.
    """
    shared = _overlap(paths, files)
    both, only_a, only_b = (int(part.sum()) for part in (shared.both, shared.only_a, shared.only_b))
    total = files[0].head_mask.total
    share = 100 * shared.num_differing / total
    lines = [
        f"a  {paths[0]}  {both + only_a} of {total} heads active",
        f"b  {paths[1]}  {both + only_b} of {total} heads active",
        f"  in both       {both}",
        f"  only in a     {only_a}",
        f"  only in b     {only_b}",
        f"  Jaccard       {shared.jaccard:.3f}",
        f"  differing     {shared.num_differing} of {total} ({share:.1f} %)",
    ]
    if files[0].model.fingerprint != files[1].model.fingerprint:
        lines.append("  made for different models, whose heads have nothing to do with each other")
    rows = zip(shared.both, shared.only_a, shared.only_b, strict=True)
    lines += [
        f"  layer {layer:>2}      both {both:>3}   only a {only_a:>3}   only b {only_b:>3}"
        for layer, (both, only_a, only_b) in enumerate(rows)
    ]
    return "\n".join(lines)


def _overlap(paths: tuple[Path, Path], files: tuple[MaskFile, MaskFile]) -> Overlap:
    try:
        return overlap(files[0].head_mask, files[1].head_mask)
    except ValueError as error:
        raise HeadMaskError(paths[1], f"cannot be compared with {paths[0]}: {error}") from error


def _side(path: Path, mask_file: MaskFile) -> dict[str, Any]:
    head_mask = mask_file.head_mask
    return {
        "file": str(path),
        "task": mask_file.task.name,
        "model": mask_file.model.name,
        "active_heads": head_mask.num_active,
        "sha256": head_mask.sha256,
    }


def _bars(head_mask: HeadMask) -> Iterator[str]:
    width = min(_BAR_WIDTH, head_mask.num_heads)
    for layer, heads in enumerate(head_mask.heads):
        num_active = int(heads.sum())
        filled = round(width * num_active / head_mask.num_heads)
        yield f"  layer {layer:>2}      [{'#' * filled:.<{width}}] {num_active}"


def _section(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"{title}:" if values else f"{title}: none"
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"  {key}  {text if len(text) <= _MAX_VALUE else f'{text[:_MAX_VALUE]}…'}"
