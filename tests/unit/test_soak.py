"""The verdict of the soak test; the test itself takes twenty minutes and is run by hand."""

from __future__ import annotations

import pytest

from benchmarks.soak_traffic import Outcome
from benchmarks.soak_verdict import Sample, verdict

MIB = 2**20
GOOD = [Outcome(200, 0.1, True)] * 50


def samples(*rss_mib: float, open_files: int = 16) -> list[Sample]:
    return [
        Sample(time_s=float(number), rss_bytes=int(mib * MIB), open_files=open_files, waiting=0, running=1,
               num_answered=number)
        for number, mib in enumerate(rss_mib)
    ]  # fmt: skip


def test_memory_that_grows_at_the_start_and_then_stays_is_flat() -> None:
    seen = verdict(samples(300, 500, 650, *[700, 705, 698] * 4), GOOD, 0)
    assert seen["good"], seen["reasons"]
    assert abs(seen["rss_growth_bytes"]) < 10 * MIB


def test_memory_that_goes_on_growing_is_not() -> None:
    seen = verdict(samples(*[700 + 5 * number for number in range(40)]), GOOD, 0)
    assert not seen["good"]
    assert "memory grew" in seen["reasons"][0]
    assert seen["rss_growth_bytes"] == 100 * MIB


@pytest.mark.parametrize(
    ("outcomes", "exit_code", "reason"),
    [
        (
            [*GOOD, Outcome(503, 0.1, True), Outcome(0, 0.1, True)],
            0,
            "2 of 52 requests were not answered 200",
        ),
        ([*GOOD, Outcome(200, 0.1, False)], 0, "1 known recordings were answered otherwise"),
        (GOOD, 1, "ended with code 1"),
    ],
)
def test_every_request_must_be_answered_and_the_same(
    outcomes: list[Outcome], exit_code: int, reason: str
) -> None:
    (said,) = verdict(samples(*[700] * 20), outcomes, exit_code)["reasons"]
    assert reason in said


def test_open_files_are_counted() -> None:
    leaking = [sample._replace(open_files=10 * number) for number, sample in enumerate(samples(*[700] * 20))]
    assert "open files grew" in verdict(leaking, GOOD, 0)["reasons"][0]


def test_a_moment_is_too_short() -> None:
    assert not verdict(samples(700, 700), GOOD, 0)["good"]
