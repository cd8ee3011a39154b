"""The analysis of head masks as files: analysis.json, figures, and a summary in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from training.analysis.curve import curve_record, curve_table, draw_curves, head_counts
from training.analysis.masks import NamedMask, load_masks
from training.analysis.overlap import (
    draw_layers,
    draw_overlap,
    overlap_record,
    pairs_table,
    seeds_record,
    seeds_table,
)
from training.bench import Bench
from training.config import load_config
from training.errors import ConfigError
from training.evaluate import split_manifest
from training.train import load_configured_family, subset


def analyse(sources: Sequence[Path], out: Path) -> str:
    """Overlap, layers and seeds of the head masks in `sources`; returns the summary.

    Raises:
        LalmError, TrainingError: what `load_masks` refuses.
    """
    masks = load_masks(sources)
    record: dict[str, Any] = {"overlap": overlap_record(masks)}
    parts = ["# Head masks\n\n" + _sizes(masks)]
    draw_layers(record["overlap"], out / "layers.png")
    if len(masks) > 1:
        draw_overlap(record["overlap"], out / "overlap.png")
        parts.append("## Overlap\n\n" + pairs_table(record["overlap"]))
    for name, alike in _by_task(masks).items():
        record.setdefault("seeds", {})[name] = seeds_record(alike)
        found = record["seeds"][name]
        common = f"{found['num_in_all']} heads are in all of them, {found['num_in_any']} in any.\n"
        parts.append(f"## {len(alike)} masks of {name}\n\n{seeds_table(found)}\n{common}")
    _write(out / "analysis.json", record)
    return "\n".join(parts)


def analyse_curve(
    sources: Sequence[Path], recipe: Path, out: Path, max_examples: int | None, num_points: int
) -> str:
    """The importance curve of the first of `sources` that has logits, on the test split of a recipe.

    Raises:
        ConfigError: no run folder among the sources, or the recipe has no test split.
    """
    mask = next((one for one in load_masks(sources) if one.logits is not None), None)
    if mask is None or mask.logits is None:
        raise ConfigError("a curve needs the logits of a training: name its run folder (runs/<task>)")
    config = load_config(recipe)
    manifest = split_manifest(config, "test")
    family = load_configured_family(config)
    if mask.logits.shape != (family.identity.num_layers, family.identity.num_heads):
        raise ConfigError(f"{mask.name}: its logits are those of another model than {config.checkpoint}")
    counts = head_counts(mask.head_mask.num_active, mask.head_mask.total, num_points)
    with Progress(console=Console(stderr=True)) as progress:
        bench = Bench(config, family, tuple(subset(manifest.examples, max_examples)), progress)
        record = curve_record(config.task.name, bench, mask.logits, counts)
    _write(out / "curve.json", record)
    draw_curves([record], out / "curve.png")
    return f"\n## Heads of {mask.name} by logits\n\n{curve_table(record)}"


def _by_task(masks: Sequence[NamedMask]) -> dict[str, list[NamedMask]]:
    """Tasks that several masks are for; a run folder's masks without a task are of one training."""
    tasks: dict[str, list[NamedMask]] = {}
    for mask in masks:
        tasks.setdefault(mask.task or "the runs", []).append(mask)
    return {name: alike for name, alike in tasks.items() if len(alike) > 1}


def _sizes(masks: Sequence[NamedMask]) -> str:
    lines = []
    for mask in sorted(masks, key=lambda one: one.head_mask.num_active):
        head_mask = mask.head_mask
        share = 100 * head_mask.num_active / head_mask.total
        lines.append(f"- {mask.name}: {head_mask.num_active} of {head_mask.total} heads ({share:.1f} %)\n")
    return "".join(lines)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
