from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.inference.exceptions import QueueFullError
from service.inference.request import EngineRequest, EngineResult, RowRequest
from service.submission import submit_in_batches


class Engine:
    """Is full whenever `full` says so next; answers with the request's own number."""

    def __init__(self, *full: bool) -> None:
        self.full = list(full)
        self.batches: list[list[str]] = []

    async def submit_together(self, requests: list[EngineRequest]) -> list[EngineResult]:
        if self.full and self.full.pop(0):
            raise QueueFullError(0.0)
        self.batches.append([request.request_id for request in requests])
        return [EngineResult(int(request.request_id), []) for request in requests]


def submit(engine: Any, num_rows: list[int], **options: Any) -> list[int]:
    requests = [
        EngineRequest(str(number), [], [RowRequest("asr", None, None, 1)] * count)
        for number, count in enumerate(num_rows)
    ]
    results = asyncio.run(submit_in_batches(engine, requests, **options))
    return [result.audio_tokens for result in results]


@pytest.mark.parametrize(
    ("num_rows", "batches"),
    [
        ([], []),
        ([1, 1], [["0", "1"]]),
        ([1, 1, 1, 1], [["0", "1", "2"], ["3"]]),
        ([2, 2, 5, 1], [["0"], ["1"], ["2"], ["3"]]),
    ],
)
def test_batches_have_as_many_rows_as_fit(num_rows: list[int], batches: list[list[str]]) -> None:
    engine = Engine()
    assert submit(engine, num_rows, max_rows=3) == list(range(len(num_rows)))
    assert engine.batches == batches


def test_what_has_begun_waits_when_the_queue_is_full() -> None:
    engine = Engine(False, True, True, False)
    assert submit(engine, [1, 1, 1], max_rows=2) == [0, 1, 2]
    assert engine.batches == [["0", "1"], ["2"]]


def test_what_has_not_begun_is_refused_or_waits() -> None:
    with pytest.raises(QueueFullError):
        submit(Engine(True), [1, 1], max_rows=2)
    assert submit(Engine(True, False), [1, 1], max_rows=2, patient=True) == [0, 1]
