from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import Ratio, Record, paired_ratio, percentile, summary


def record(latency_s: float, **changes: object) -> Record:
    values: dict[str, object] = {
        "task": "asr",
        "audio_s": 2.0,
        "latency_s": latency_s,
        "first_token_s": latency_s / 2,
        "inside_s": latency_s - 0.004,
        "num_refused": 0,
        "error": None,
        "same": True,
        "right": True,
    }
    return Record(**(values | changes))  # type: ignore[arg-type]


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values[::-1], share) for share in (0.5, 0.95, 0.99, 1.0, 0.0)] == [50, 95, 99, 100, 1]
    assert percentile([7.0], 0.99) == 7


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_what_has_no_percentile_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_a_summary_counts_errors_and_leaves_them_out_of_latencies_and_rates() -> None:
    records = [
        record(0.1),
        record(0.3, right=False),
        record(0.2, num_refused=2),
        record(9.0, error="HTTP 500"),
    ]
    figures = summary(records, wall_s=2.0)
    assert (figures["requests"], figures["errors"], figures["refused"]) == (4, 1, 2)
    assert (figures["requests_per_s"], figures["rtfx"]) == (1.5, 3.0)
    assert (figures["p50_ms"], figures["p99_ms"]) == (200, 300)
    assert figures["first_token_p50_ms"] == 100
    assert figures["outside_model_p50_ms"] == pytest.approx(4)
    assert (figures["same"], figures["right"]) == (1.0, pytest.approx(2 / 3))


def test_a_summary_of_nothing_but_errors_has_no_latency() -> None:
    figures = summary([record(1.0, error="no")], wall_s=1.0)
    assert (figures["requests_per_s"], figures["p50_ms"], figures["same"]) == (0.0, None, None)


def test_ratios_are_paired_by_round() -> None:
    assert paired_ratio([2.0, 30.0, 4.0], [4.0, 10.0, 4.0]) == Ratio(1.0, 0.5, 3.0, 3)
    assert paired_ratio([2.0, None], [4.0, 1.0]) == Ratio(0.5, 0.5, 0.5, 1)
    assert paired_ratio([None], [4.0]) is None
    assert paired_ratio([1.0], [0.0]) is None
