"""From single measurements to the figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Record:
    """One answered request.

    latency_s: from the first attempt to the whole answer, waiting after refusals included.
    first_token_s: until the first token of the answer existed; None if the peer does not say.
    inside_s: of the latency, what the peer spent in encoder, prefill and decode; None if it does not say.
    error: None, or what went wrong. num_refused: honest refusals (429) before the answer.
    same: the text is that of plain generate with the same kind of prompt; right: it says what was recorded.
    """

    task: str
    audio_s: float
    latency_s: float
    first_token_s: float | None
    inside_s: float | None
    num_refused: int
    error: str | None
    same: bool
    right: bool


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank).

    Raises:
        ValueError: no values, or a share outside 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError("a percentile needs values, and a share from 0 to 1")
    ordered = sorted(values)
    return ordered[max(int(np.ceil(share * len(ordered))) - 1, 0)]


def summary(records: Sequence[Record], wall_s: float) -> dict[str, Any]:
    """The figures of one round, or of several taken together (wall_s is then their sum).

    Latencies are those of requests without error; rates count them only.
    """
    good = [record for record in records if record.error is None]
    latencies_ms = [1e3 * record.latency_s for record in good]
    firsts_ms = [1e3 * record.first_token_s for record in good if record.first_token_s is not None]
    outside_ms = [
        1e3 * (record.latency_s - record.inside_s) for record in good if record.inside_s is not None
    ]
    return {
        "requests": len(records),
        "errors": len(records) - len(good),
        "refused": sum(record.num_refused for record in records),
        "wall_s": wall_s,
        "requests_per_s": len(good) / wall_s,
        "rtfx": sum(record.audio_s for record in good) / wall_s,
        "p50_ms": percentile(latencies_ms, 0.5) if good else None,
        "p95_ms": percentile(latencies_ms, 0.95) if good else None,
        "p99_ms": percentile(latencies_ms, 0.99) if good else None,
        "first_token_p50_ms": percentile(firsts_ms, 0.5) if firsts_ms else None,
        "outside_model_p50_ms": percentile(outside_ms, 0.5) if outside_ms else None,
        "same": sum(record.same for record in good) / len(good) if good else None,
        "right": sum(record.right for record in good) / len(good) if good else None,
    }


@dataclass(frozen=True)
class Ratio:
    """Ours / theirs in the same rounds: the median of the rounds' ratios, and their range."""

    median: float
    low: float
    high: float
    rounds: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Ratio | None:
    """Ours / theirs, round by round; None if no round has a figure of both sides."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b)
    if not ratios:
        return None
    return Ratio(float(np.median(ratios)), ratios[0], ratios[-1], len(ratios))
