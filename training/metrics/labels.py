"""Classification: accuracy, macro-F1, the confusion matrix, and the equal error rate of verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.metrics.measured import Floats, Indices, Measured, averaged, summed


@dataclass(frozen=True)
class Confusion:
    """How often which label (a row) was answered by which (a column); the last column is "no label"."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]


def accuracy(references: Sequence[str], answers: Sequence[str | None], name: str = "acc") -> Measured:
    """The share of right answers, in percent."""
    right = [said == reference for reference, said in zip(references, answers, strict=True)]
    return averaged(name, 100 * np.array(right, dtype=np.float64))


def macro_f1(labels: Sequence[str], references: Sequence[str], answers: Sequence[str | None]) -> Measured:
    """The mean over labels of F1, in percent; a label that neither occurs nor is answered does not count."""
    statistics = np.array(
        [
            [(said == label) + 2 * (reference == label) for label in labels]
            for reference, said in zip(references, answers, strict=True)
        ]
    )
    hits, said_only, missed = (statistics == code for code in (3, 1, 2))
    return summed("f1", np.concatenate([hits, said_only, missed], axis=1).astype(np.float64), _mean_f1)


def confusion(labels: Sequence[str], references: Sequence[str], answers: Sequence[str | None]) -> Confusion:
    """The confusion matrix, int64 [num_labels, num_labels + 1]."""
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for reference, said in zip(references, answers, strict=True):
        column = labels.index(said) if said in labels else len(labels)
        counts[labels.index(reference), column] += 1
    return Confusion(tuple(labels), counts)


def equal_error_rate(scores: Floats, targets: NDArray[np.bool_]) -> Measured:
    """The rate at which as many targets are rejected as others are accepted, in percent.

    scores: float64 [num_examples], higher for targets. Between two thresholds the rates are interpolated.
    """
    return Measured("eer", _eer(scores, targets), lambda at: _eer(scores[at], targets[at]))


def _mean_f1(sums: Floats) -> float:
    hits, said_only, missed = sums.reshape(3, -1)
    whole = 2 * hits + said_only + missed
    seen = whole > 0
    return float(100 * (2 * hits[seen] / whole[seen]).mean()) if seen.any() else 0.0


def _eer(scores: Floats, targets: NDArray[np.bool_]) -> float:
    num_targets = int(targets.sum())
    num_others = len(targets) - num_targets
    if num_targets == 0 or num_others == 0:
        return 0.0
    order: Indices = np.argsort(scores, kind="stable")
    ordered, right = scores[order], targets[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # equal scores fall together
    missed = np.append(0.0, np.cumsum(right)[last]) / num_targets
    accepted = 1 - np.append(0.0, np.cumsum(~right)[last]) / num_others
    after = int(np.argmax(missed >= accepted))
    if after == 0:
        return float(100 * missed[0])
    gap_before = accepted[after - 1] - missed[after - 1]
    gap_after = missed[after] - accepted[after]
    share = gap_before / (gap_before + gap_after)
    return float(100 * (missed[after - 1] + share * (missed[after] - missed[after - 1])))
