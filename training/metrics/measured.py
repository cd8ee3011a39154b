"""A measured metric, and how sure one can be of it.

Source: paired bootstrap resampling, Koehn, "Statistical Significance Tests for Machine Translation
Evaluation" (EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measured:
    """One metric over the examples of a run, in percent where it is a share.

    resample: the value of the examples `indices` (int64 [n], with repetitions); None where only the whole can
    be measured.
    per_example: float64 [num_examples], where a single example has a value of its own.
    """

    name: str
    value: float
    resample: Callable[[Indices], float] | None = None
    per_example: Floats | None = None


def summed(
    name: str, statistics: Floats, combine: Callable[[Floats], float], per_example: Floats | None = None
) -> Measured:
    """A metric of sums over examples: statistics [num_examples, k], `combine` reads their sum [k]."""
    return Measured(
        name,
        combine(statistics.sum(axis=0)),
        lambda indices: combine(statistics[indices].sum(axis=0)),
        per_example,
    )


def averaged(name: str, per_example: Floats) -> Measured:
    """A metric that is the mean over examples, float64 [num_examples]."""
    return Measured(
        name, float(per_example.mean()), lambda indices: float(per_example[indices].mean()), per_example
    )


class Interval(NamedTuple):
    """A bootstrap percentile interval of 95 %."""

    low: float
    high: float


class Comparison(NamedTuple):
    """One minus the other on the same examples; p_value is two-sided, of "there is no difference"."""

    metric: str
    difference: float
    interval: Interval
    p_value: float


def resamples(num_examples: int, num_resamples: int, seed: int = 0) -> Iterator[Indices]:
    """Draws of `num_examples` indices with repetition, always the same ones."""
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield rng.integers(num_examples, size=num_examples)


def interval(measured: Measured, num_examples: int, num_resamples: int = NUM_RESAMPLES) -> Interval | None:
    """Where the metric would lie on other examples of the same kind; None where it cannot be resampled."""
    if measured.resample is None:
        return None
    return _percentiles([measured.resample(indices) for indices in resamples(num_examples, num_resamples)])


def compare(
    one: Measured, other: Measured, num_examples: int, num_resamples: int = NUM_RESAMPLES
) -> Comparison | None:
    """Paired bootstrap of two runs over the same examples; None where the metric cannot be resampled."""
    if one.resample is None or other.resample is None:
        return None
    differences = [
        one.resample(indices) - other.resample(indices) for indices in resamples(num_examples, num_resamples)
    ]
    not_above = sum(difference <= 0 for difference in differences)
    not_below = sum(difference >= 0 for difference in differences)
    p_value = min(1.0, 2 * (min(not_above, not_below) + 1) / (num_resamples + 1))
    return Comparison(one.name, one.value - other.value, _percentiles(differences), p_value)


def _percentiles(values: list[float]) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
