"""Was the soak test good: every request answered, and memory flat?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.soak_traffic import Outcome

# The start, in which caches fill and allocators reach their size, does not count.
_WARM_UP_SHARE = 0.25
# What memory may be more at the end than after the warm-up.
MAX_GROWTH_SHARE = 0.03
MAX_GROWTH_BYTES = 32 * 2**20
MAX_MORE_OPEN_FILES = 32


class Sample(NamedTuple):
    """What the service said of itself at some moment."""

    time_s: float
    rss_bytes: int
    open_files: int
    waiting: int
    running: int
    num_answered: int


def verdict(samples: Sequence[Sample], outcomes: Sequence[Outcome], exit_code: int) -> dict[str, Any]:
    """`good`, the `reasons` why not, and the figures that they rest on.

    Memory is flat when the median of the last third after the warm-up is beyond that of the first third by no
    more than 3 % or 32 MiB, whichever is more.
    """
    steady = samples[int(len(samples) * _WARM_UP_SHARE) :]
    third = len(steady) // 3
    reasons, figures = [], {}
    if third == 0:
        reasons.append("too short for a verdict on memory")
    else:
        first, last = steady[:third], steady[-third:]
        before, after = (int(statistics.median(s.rss_bytes for s in part)) for part in (first, last))
        files = [int(statistics.median(s.open_files for s in part)) for part in (first, last)]
        figures = {"rss_bytes_before": before, "rss_bytes_after": after, "rss_growth_bytes": after - before}
        if after - before > max(MAX_GROWTH_SHARE * before, MAX_GROWTH_BYTES):
            reasons.append(f"memory grew by {(after - before) / 2**20:.1f} MiB from {before / 2**20:.1f}")
        if files[1] - files[0] > MAX_MORE_OPEN_FILES:
            reasons.append(f"open files grew from {files[0]} to {files[1]}")
    if bad := [outcome.status for outcome in outcomes if outcome.status != 200]:
        reasons.append(f"{len(bad)} of {len(outcomes)} requests were not answered 200: {sorted(set(bad))}")
    if changed := sum(not outcome.same for outcome in outcomes):
        reasons.append(f"{changed} known recordings were answered otherwise than before")
    if exit_code != 0:
        reasons.append(f"the service ended with code {exit_code}")
    return {"good": not reasons, "reasons": reasons, **figures}
