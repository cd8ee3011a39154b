"""The pieces of a recording, given to the engine a batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from service.inference.exceptions import QueueFullError
from service.inference.request import EngineRequest, EngineResult
from service.runtime import InferenceEngine


async def submit_in_batches(
    engine: InferenceEngine, requests: Sequence[EngineRequest], *, max_rows: int, patient: bool = False
) -> list[EngineResult]:
    """Answers in the order of `requests`, of which those that fit into `max_rows` rows run together.

    Other recordings come in between the batches, so that a long one holds nobody up and is not shut out by a
    queue that is never empty.

    patient: wait when the queue is full, rather than refuse. What has begun always waits.

    Raises:
        QueueFullError: there is no room for the first batch.
        InferenceError: the engine failed on a request.
    """
    results: list[EngineResult] = []
    for batch in _batches(requests, max_rows):
        while True:
            try:
                results += await engine.submit_together(batch)
                break
            except QueueFullError as full:
                if not (results or patient):
                    raise
                await asyncio.sleep(full.retry_after_s)
    return results


def _batches(requests: Sequence[EngineRequest], max_rows: int) -> Iterator[list[EngineRequest]]:
    """As many as fit, but at least one."""
    batch: list[EngineRequest] = []
    for request in requests:
        if batch and sum(len(each.rows) for each in (*batch, request)) > max_rows:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch
