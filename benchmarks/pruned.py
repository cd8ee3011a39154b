"""Compiled checkpoints against the masked model they come from: size and decode step by active heads.

    python -m benchmarks.pruned                a minute on two idle cores; writes benchmarks/results/pruned.*
    python -m benchmarks.pruned --quick        shows that it runs; the times mean nothing

Every shipped head mask and random ones of other sizes are compiled. A decode step is measured of the masked
model with all heads computed (what a GPU does), of the masked model as the service runs it here, and of the
compiled one, in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu_decode import DecodeBatch
from benchmarks.jobs import REPOSITORY
from benchmarks.machine import describe
from benchmarks.report import table
from benchmarks.timing import interleaved, median_ms
from lalm import tiny
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile
from lalm.pruned import prune_checkpoint

HEADER = (
    "head mask", "active heads", "file MB", "decoder MB", "cache bytes/token",
    "all heads computed ms", "as served ms", "compiled ms", "compiled / all heads", "compiled / as served",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is measured; random_shares: of all heads, for random head masks."""

    random_shares: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.1, 0.03)
    max_shipped: int | None = None
    batch: int = 8
    prompt_tokens: int = 64
    steps: int = 16
    rounds: int = 7


QUICK = Plan(random_shares=(0.1,), max_shipped=1, batch=2, prompt_tokens=8, steps=2, rounds=1)


@dataclass(frozen=True)
class Figures:
    """One head mask. Bytes are float32 in memory; times are of one decode step of the batch."""

    name: str
    active_heads: int
    file_bytes: int
    decoder_bytes: int
    cache_bytes_per_token: int
    masked_ms: float
    served_ms: float
    compiled_ms: float
    compiled_to_masked: float
    compiled_to_served: float


def main(arguments: Sequence[str] | None = None) -> list[Figures]:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    plan, machine = QUICK if options.quick else Plan(), describe()
    whole = load_family(tiny.CHECKPOINT)
    figures = []
    for name, head_mask in head_masks(whole, plan):
        figures.append(measure(whole, name, head_mask, plan))
        print(f"{name}: done", flush=True)
    figures.sort(key=lambda each: each.active_heads, reverse=True)
    page = render(figures, machine, plan)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "plan": asdict(plan), "head_masks": [asdict(each) for each in figures]}
    (options.out / "pruned.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.out / "pruned.md").write_text(page, encoding="utf-8")
    print(page)
    return figures


def head_masks(family: ModelFamily, plan: Plan) -> Iterator[tuple[str, HeadMask]]:
    """The shipped ones, and random ones by their share of active heads."""
    for path in sorted((REPOSITORY / "masks" / tiny.NAME).glob("*.json"))[: plan.max_shipped]:
        yield path.stem, MaskFile.load(path).head_mask
    shape = (family.identity.num_layers, family.identity.num_heads)
    for share in plan.random_shares:
        num_active = round(share * shape[0] * shape[1])
        yield f"random, {share:.0%}", HeadMask.random(num_active, np.random.default_rng(0), shape)


def measure(whole: ModelFamily, name: str, head_mask: HeadMask, plan: Plan) -> Figures:
    """Compile a head mask into a temporary folder, and hold it against the masked model."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = prune_checkpoint(tiny.CHECKPOINT, head_mask, Path(folder) / "pruned")
        pruned = load_family(Path(folder) / "pruned")
    masks, num_steps = [head_mask] * plan.batch, plan.steps * (plan.rounds + 1)
    kept = [HeadMask.from_strings(pruned.decoder.config.kept_heads)] * plan.batch
    batches = {
        "masked": DecodeBatch(whole, masks, plan.prompt_tokens, num_steps, packed=False),
        "served": DecodeBatch(whole, masks, plan.prompt_tokens, num_steps),
        "compiled": DecodeBatch(pruned, kept, plan.prompt_tokens, num_steps),
    }
    calls = {key: partial(batch.steps, plan.steps) for key, batch in batches.items()}
    times = interleaved(calls, whole.device, plan.rounds)
    ratios = {
        key: median(ours / theirs for ours, theirs in zip(times["compiled"], times[key], strict=True))
        for key in ("masked", "served")
    }
    step_ms = {key: median_ms(values) / plan.steps for key, values in times.items()}
    return Figures(
        name=name,
        active_heads=head_mask.num_active,
        file_bytes=sizes.weight_bytes_kept,
        decoder_bytes=sum(weight.nbytes for weight in pruned.decoder.parameters()),
        cache_bytes_per_token=cache_bytes_per_token(pruned),
        masked_ms=step_ms["masked"],
        served_ms=step_ms["served"],
        compiled_ms=step_ms["compiled"],
        compiled_to_masked=ratios["masked"],
        compiled_to_served=ratios["served"],
    )


def cache_bytes_per_token(family: ModelFamily) -> int:
    """Keys and values of one position in all layers, in the precision of the weights."""
    layers: Any = family.decoder.layers
    projections = [getattr(layer.self_attn, "k_proj", None) for layer in layers]
    element = family.dtype.itemsize
    return sum(2 * element * (1 if keys is None else keys.out_features) for keys in projections)


def render(figures: Sequence[Figures], machine: dict[str, Any], plan: Plan) -> str:
    """The table, the largest head mask first."""
    rows = [
        (
            each.name,
            str(each.active_heads),
            f"{each.file_bytes / 1e6:.1f}",
            f"{each.decoder_bytes / 1e6:.1f}",
            str(each.cache_bytes_per_token),
            f"{each.masked_ms:.2f}",
            f"{each.served_ms:.2f}",
            f"{each.compiled_ms:.2f}",
            f"{each.compiled_to_masked:.2f} x",
            f"{each.compiled_to_served:.2f} x",
        )
        for each in figures
    ]
    about = (
        f"Decode step of {plan.batch} rows, {plan.rounds} rounds; {machine['processor']}, "
        f"{machine['num_cpus']} CPUs, {machine['torch_threads']} threads, "
        f"load before {machine['load_before']}, {machine['date']}, commit {machine['commit']}."
    )
    return "\n".join(["# Compiled checkpoints", "", about, "", *table(HEADER, rows)]) + "\n"


if __name__ == "__main__":
    main()
