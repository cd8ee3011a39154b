"""What drafts bring: each task's answer with them and without, in one run.

    python -m benchmarks.drafts                     the embedded model, its samples; half a minute

The engine alone, without HTTP: one request at a time, its recording encoded anew; the first recordings that a
task has an answer for. The two engines take turns, and what they answer is held to be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import soundfile

from benchmarks.machine import describe_line
from benchmarks.report import table
from lalm import tiny
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from service.audio_pool import compute_alone
from service.inference.engine import Engine, EngineConfig, EngineRequest, RowRequest
from service.inference.observer import NullObserver


class WithoutDrafts:
    """A family that spells no text, so that nothing is guessed."""

    def __init__(self, family: ModelFamily) -> None:
        self._family = family

    def encode_text(self, _text: str) -> list[int]:
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)


class Steps(NullObserver):
    """Counts decode steps."""

    count = 0

    def on_decode_step(self, seconds: float, num_rows: int) -> None:  # noqa: ARG002
        self.count += 1


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print a table, and return its figures by task."""
    options = _options(arguments)
    compute_alone()  # features, as the service does
    family = load_family(str(tiny.CHECKPOINT))
    expected = json.loads((options.samples / "expected.json").read_text(encoding="utf-8"))
    files = [MaskFile.load(path) for path in sorted(options.masks.glob("*.json"))]
    files = [file for file in files if file.task.num_audios == 1]
    observers = Steps(), Steps()
    config = EngineConfig(max_audio_cache_bytes=0)
    engines = [
        Engine(each, config, observer)
        for each, observer in zip((family, WithoutDrafts(family)), observers, strict=True)
    ]
    figures: dict[str, dict[str, float]] = {}
    try:
        for engine in engines:
            engine.start([file.head_mask for file in files])
        for file in files:
            names = [answer["file"] for answer in expected if answer["task"] == file.task.name]
            waves = [
                soundfile.read(options.samples / name, dtype="float32")[0]
                for name in names[: options.recordings]
            ]
            figures[file.task.name] = _measure(file, waves, engines, observers, options.rounds)
    finally:
        for engine in engines:
            engine.stop()
    print(describe_line(), end="\n\n")
    rows = [
        (
            name,
            f"{it['drafted_ms']:.1f}",
            f"{it['generated_ms']:.1f}",
            f"{it['ratio']:.2f} x",
            f"{it['drafted_steps']:g}",
            f"{it['generated_steps']:g}",
        )
        for name, it in figures.items()
    ]
    print(*table(("task", "ms", "without drafts", "ratio", "decode steps", "without"), rows), sep="\n")
    return figures


def _measure(
    file: MaskFile, waves: Sequence[Any], engines: Sequence[Engine], observers: Sequence[Steps], rounds: int
) -> dict[str, float]:
    """Medians over recordings and rounds; the ratio is that of pairs."""
    row = RowRequest(file.task.name, file.head_mask, None, file.task.max_new_tokens, output=file.task.output)
    times: tuple[list[float], list[float]] = [], []
    steps: tuple[list[int], list[int]] = [], []
    for number in range(1 + rounds):  # the first warms up
        for wave in waves:
            answers = {}
            for arm in (0, 1) if number % 2 else (1, 0):
                request = EngineRequest("bench", [engines[arm].family.features(wave)], [row])
                observers[arm].count, start_s = 0, time.perf_counter()
                answers[arm] = asyncio.run(engines[arm].submit(request)).rows[0].text
                if number:
                    times[arm].append(1e3 * (time.perf_counter() - start_s))
                    steps[arm].append(observers[arm].count)
            if answers[0] != answers[1]:
                raise RuntimeError(f"{file.task.name}: {answers[0]!r} with drafts, {answers[1]!r} without")
    return {
        "drafted_ms": median(times[0]),
        "generated_ms": median(times[1]),
        "ratio": median(with_ms / without_ms for with_ms, without_ms in zip(*times, strict=True)),
        "drafted_steps": median(steps[0]),
        "generated_steps": median(steps[1]),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=Path, default=Path("masks/tiny-lalm"))
    parser.add_argument("--samples", type=Path, default=Path("samples"))
    parser.add_argument("--recordings", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
