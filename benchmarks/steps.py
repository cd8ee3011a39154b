"""One step of the embedded model's decoder, padded and packed: CPU time of one thread.

    python -m benchmarks.steps                        half a minute; the table of docs/engine.md
    python -m benchmarks.steps --prompt-tokens 250 --repeats 9

Prefills and decode steps of one row and of several, under one head mask and under those of several tasks.
The time is that of the thread, so that a machine with other work gives nearly the figures of an idle one; the
two passes take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import describe_line
from benchmarks.report import table
from lalm import tiny
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile
from service.inference.chunk import Chunk, ForwardPass
from service.inference.kv_cache import KvCache
from service.inference.packed import PackedPass
from service.inference.padded import PaddedPass

NUM_ROWS, MAX_POSITIONS = 16, 512


def main() -> None:
    """Measure and print a table."""
    options = _options()
    torch.set_num_threads(1)
    family = load_family(str(tiny.CHECKPOINT))
    masks = [MaskFile.load(path).head_mask for path in sorted(options.masks.glob("*.json"))]
    passes = {"padded": _pass_of(family, packed=False), "packed": _pass_of(family, packed=True)}
    for forward in passes.values():
        forward.prepare(masks)
    print(describe_line(), end="\n\n")
    rows = [
        (name, *(f"{ms:.1f}" for ms in _thread_ms(calls, options.repeats)))
        for name, calls in _steps(passes, family, masks, options.prompt_tokens).items()
    ]
    print(*table(("ms", *passes), rows), sep="\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--masks", type=Path, default=Path("masks/tiny-lalm"))
    parser.add_argument("--prompt-tokens", type=int, default=50, help="positions of each row's prompt")
    parser.add_argument("--repeats", type=int, default=25, help="of every step")
    return parser.parse_args()


def _pass_of(family: ModelFamily, *, packed: bool) -> ForwardPass:
    cache = KvCache(family.identity.num_layers, NUM_ROWS, MAX_POSITIONS)
    cache.reserve(NUM_ROWS, MAX_POSITIONS)
    if packed:
        return PackedPass(family.decoder, cache, MAX_POSITIONS)
    return PaddedPass(family, cache, NUM_ROWS)


def _steps(
    passes: dict[str, ForwardPass], family: ModelFamily, masks: Sequence[HeadMask], prompt_tokens: int
) -> dict[str, list[Callable[[], object]]]:
    """What is measured, by name: a call for each pass."""
    hidden = family.decoder.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randn(prompt_tokens, hidden, generator=generator) for _ in range(NUM_ROWS)]
    alike, several = list(masks[:1]) * NUM_ROWS, [masks[row % len(masks)] for row in range(NUM_ROWS)]

    def prefill(of_rows: Sequence[HeadMask]) -> list[Callable[[], object]]:
        chunks = [Chunk(slot, 0, prompt_tokens, mask) for slot, mask in enumerate(of_rows)]
        return [partial(it.prefill, prompts[: len(chunks)], chunks) for it in passes.values()]

    def decode(of_rows: Sequence[HeadMask]) -> list[Callable[[], object]]:
        chunks = [Chunk(slot, prompt_tokens + slot, 1, mask) for slot, mask in enumerate(of_rows)]
        return [partial(it.decode, [7] * len(chunks), chunks) for it in passes.values()]

    return {
        "prefill, one row": prefill(masks[:1]),
        f"prefill, {len(masks)} tasks on one recording": prefill(masks),
        "decode step, one row": decode(masks[:1]),
        f"decode step, {NUM_ROWS} rows of one task": decode(alike),
        f"decode step, {NUM_ROWS} rows of {len(masks)} tasks": decode(several),
    }


@torch.inference_mode()
def _thread_ms(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of this thread's CPU time for each call; they take turns, two first for warming."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 2):
        for call, of_call in zip(calls, times, strict=True):
            start_s = time.thread_time()
            call()
            of_call.append(time.thread_time() - start_s)
    return [1e3 * median(of_call[2:]) for of_call in times]


if __name__ == "__main__":
    main()
