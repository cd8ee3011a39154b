"""Qwen2-Audio-7B's shape with random weights in bfloat16 against the limits of the machine, in one run.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json      a GPU of 80 GB; five to ten minutes
    python -m benchmarks.gpu --small                                on a CPU: shows that it runs, no more

decode     a step of the service at batch 1, 8, 32, 64 against the floor: every weight read once, at the
           bandwidth that this device was measured to have; against the same step without CUDA graphs; and
           against transformers generate
masks      the same step without head masks, under one, and under a different one in each row
encoder    clips over their true lengths, and padded to the model's window
training   a step of a head mask: forward, backward, memory

The table is printed last. Random weights take as long as real ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_decode import DecodeBatch, generate_step_s, weight_bytes_per_step
from benchmarks.gpu_training import training_step
from benchmarks.machine import describe
from benchmarks.random_qwen2_audio import QWEN2_AUDIO_7B, SMALL, random_family
from benchmarks.report import table
from benchmarks.timing import bandwidth_bytes_per_s, interleaved, median_ms, seconds
from lalm.audio import SAMPLE_RATE_HZ
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from service.inference.decode_graphs import capture_for

Row = tuple[str, str, str, str]
HEADER = ("what", "figure", "against", "ratio")


@dataclass(frozen=True)
class Plan:
    """How much is measured. clips_s: lengths of the encoder's clips in seconds."""

    batches: tuple[int, ...] = (1, 8, 32, 64)
    prompt_tokens: int = 256
    steps: int = 32
    rounds: int = 5
    masks_batch: int = 32
    clips_s: tuple[float, ...] = (2.0, 3.0, 5.0, 8.0, 10.0, 12.0, 20.0, 30.0)
    training_batch: int = 8
    answer_tokens: int = 48
    bandwidth_bytes: int = 4 * 2**30


SMALL_PLAN = Plan(
    batches=(1, 4),
    prompt_tokens=16,
    steps=3,
    rounds=2,
    masks_batch=4,
    clips_s=(0.5, 1.0, 2.0),
    training_batch=2,
    answer_tokens=4,
    bandwidth_bytes=2**26,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure everything, print the table, and return (with --out write) the figures."""
    options = _options(arguments)
    plan, shape = (SMALL_PLAN, SMALL) if options.small else (Plan(), QWEN2_AUDIO_7B)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    family = random_family(shape, device, dtype)
    figures: dict[str, Any] = {"machine": describe(), "device": _device(device), "dtype": options.dtype}
    rows: list[Row] = []
    for name, measure in _PARTS.items():
        if name in options.parts:
            print(f"{name} …", flush=True)
            figures[name], part = measure(family, plan)
            rows += part
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"{figures['device']}, {options.dtype}, torch {torch.__version__}\n")
    print("\n".join(table(HEADER, rows)))
    return figures


def measure_decode(family: ModelFamily, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
    """A decode step of the service at each batch, against the floor and against generate."""
    bandwidth = bandwidth_bytes_per_s(family.device, plan.bandwidth_bytes)
    num_bytes = weight_bytes_per_step(family)
    floor_ms = 1e3 * num_bytes / bandwidth
    figures: dict[str, Any] = {
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "weight_gb_per_step": num_bytes / 1e9,
        "floor_ms": floor_ms,
        "batches": {},
    }
    rows: list[Row] = [
        ("bandwidth, measured", f"{bandwidth / 1e9:.0f} GB/s", "", ""),
        ("weights read a step", f"{num_bytes / 1e9:.2f} GB", f"floor {floor_ms:.2f} ms", ""),
    ]
    for batch in plan.batches:
        head_masks = [random_mask(family, seed) for seed in range(batch)]
        most, capture = plan.steps * (plan.rounds + 1), capture_for(family.device)
        arms = {"step": DecodeBatch(family, head_masks, plan.prompt_tokens, most, capture=capture)}
        is_captured = arms["step"].is_captured
        if is_captured:
            arms["computed_step"] = DecodeBatch(family, head_masks, plan.prompt_tokens, most)
        calls = {name: partial(arm.steps, plan.steps) for name, arm in arms.items()}
        times = interleaved(calls, family.device, plan.rounds)
        found = {f"{name}_ms": median_ms(of_arm) / plan.steps for name, of_arm in times.items()}
        del arms, calls
        generate_s = generate_step_s(family, batch, plan.prompt_tokens, plan.steps, plan.rounds)
        found["generate_step_ms"] = 1e3 * generate_s
        figures["batches"][batch] = {"is_captured": is_captured, **found}
        title = f"decode step, batch {batch}" + (", captured" if is_captured else "")
        step_ms = found.pop("step_ms")
        share = f"{100 * floor_ms / step_ms:.0f} % of the floor"
        rows.append((title, f"{step_ms:.2f} ms", f"floor {floor_ms:.2f} ms", share))
        for name, against_ms in found.items():
            against = f"{name.removesuffix('_step_ms')} {against_ms:.2f} ms"
            rows.append((title, f"{step_ms:.2f} ms", against, f"{against_ms / step_ms:.2f} x as fast"))
    return figures, rows


def measure_masks(family: ModelFamily, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
    """A decode step without head masks, under one for all rows, and under one a row."""
    batch = plan.masks_batch
    one = random_mask(family, 0)
    arms: dict[str, list[HeadMask | None]] = {
        "off": [None] * batch,
        "one": [one] * batch,
        "mixed": [random_mask(family, seed) for seed in range(batch)],
    }
    most = plan.steps * (plan.rounds + 1)
    batches = {
        name: DecodeBatch(family, masks, plan.prompt_tokens, most, capture=capture_for(family.device))
        for name, masks in arms.items()
    }
    calls = {name: partial(decode.steps, plan.steps) for name, decode in batches.items()}
    times = interleaved(calls, family.device, plan.rounds)
    figures = {name: median_ms(values) / plan.steps for name, values in times.items()}
    rows: list[Row] = []
    for name, against in (("one", "off"), ("mixed", "off"), ("mixed", "one")):
        ratio = median(a / b for a, b in zip(times[name], times[against], strict=True))
        title = f"decode step, batch {batch}, head masks {name}"
        rows.append(
            (title, f"{figures[name]:.2f} ms", f"{against} {figures[against]:.2f} ms", f"{ratio:.3f} x")
        )
    return figures, rows


def measure_encoder(family: ModelFamily, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
    """One pass over clips of mixed lengths, as they are and padded with silence to the window."""
    rng = np.random.default_rng(0)
    clips = [
        0.1 * rng.standard_normal(round(length_s * SAMPLE_RATE_HZ)).astype(np.float32)
        for length_s in plan.clips_s
    ]
    window = round(family.max_audio_s * SAMPLE_RATE_HZ)
    true = [family.features(clip) for clip in clips]
    padded = [family.features(np.pad(clip, (0, window - clip.size))) for clip in clips]
    calls: dict[str, Callable[[], object]] = {
        "true": lambda: family.embed_audio(true),
        "padded": lambda: family.embed_audio(padded),
    }
    times = interleaved(calls, family.device, plan.rounds)
    figures = {f"{name}_ms": median_ms(values) for name, values in times.items()}
    ratio = median(a / b for a, b in zip(times["true"], times["padded"], strict=True))
    title = f"encoder, {len(clips)} clips of {min(plan.clips_s):g} to {max(plan.clips_s):g} s"
    padded_ms = f"padded {figures['padded_ms']:.1f} ms"
    return figures, [(title, f"{figures['true_ms']:.1f} ms", padded_ms, f"{ratio:.2f} x")]


def measure_training(family: ModelFamily, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
    """A step of a head mask, and what the device held at most."""
    cuda = family.device.type == "cuda"
    step = training_step(family, plan.training_batch, plan.prompt_tokens, plan.answer_tokens)
    step()
    if cuda:
        torch.cuda.reset_peak_memory_stats(family.device)
    times = [seconds(step, family.device) for _ in range(plan.rounds)]
    figures: dict[str, Any] = {"step_ms": median_ms(times)}
    memory = ""
    if cuda:
        figures["peak_gb"] = torch.cuda.max_memory_allocated(family.device) / 1e9
        memory = f"{figures['peak_gb']:.1f} GB at most"
    title = f"training step, batch {plan.training_batch}, {plan.prompt_tokens + plan.answer_tokens} positions"
    return figures, [(title, f"{figures['step_ms']:.0f} ms", memory, "")]


_PARTS: dict[str, Callable[[ModelFamily, Plan], tuple[dict[str, Any], list[Row]]]] = {
    "decode": measure_decode,
    "masks": measure_masks,
    "encoder": measure_encoder,
    "training": measure_training,
}


def random_mask(family: ModelFamily, seed: int) -> HeadMask:
    """Three quarters of the heads."""
    shape = (family.identity.num_layers, family.identity.num_heads)
    return HeadMask.random(shape[0] * shape[1] * 3 // 4, np.random.default_rng(seed), shape)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(describe()["processor"])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small shape, float32 on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=list(_PARTS))
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args(arguments)
    if options.small:
        options.device, options.dtype = "cpu", "float32"
    return options


if __name__ == "__main__":
    main()
