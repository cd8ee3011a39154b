"""A head mask file in words: for people at a terminal, and as a record for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lalm.head_mask import HeadMask, MaskFile

_BAR_WIDTH = 40


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


def _bars(head_mask: HeadMask) -> Iterator[str]:
    width = min(_BAR_WIDTH, head_mask.num_heads)
    for layer, heads in enumerate(head_mask.heads):
        num_active = int(heads.sum())
        filled = round(width * num_active / head_mask.num_heads)
        yield f"  layer {layer:>2}      [{'#' * filled:.<{width}}] {num_active}"


def _section(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"{title}:" if values else f"{title}: none"
    for key, value in values.items():
        yield f"  {key}  {value if isinstance(value, str) else json.dumps(value)}"
