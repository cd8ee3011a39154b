"""A closed loop of clients: each sends its next request when it has the answer to its last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.jobs import Job
from benchmarks.peers.peer import Answer, Peer
from benchmarks.stats import Record

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Truth:
    """What texts are held against.

    texts: of plain generate, by (recording, task), with the head mask or with the instruction.
    results: what was really said, by (recording, task).
    """

    masked: dict[tuple[str, str], str]
    instructed: dict[tuple[str, str], str]
    results: dict[tuple[str, str], dict[str, str]]


async def run_jobs(
    peer: Peer, jobs: Sequence[Job], num_clients: int, truth: Truth, *, timeout_s: float = TIMEOUT_S
) -> tuple[list[Record], float]:
    """Every job once, `num_clients` at a time; the records in the order of the jobs, and seconds in all.

    timeout_s: what takes longer counts as an error.
    """
    records: list[Record | None] = [None] * len(jobs)
    queue = iter(range(len(jobs)))

    async def client() -> None:
        for number in queue:
            records[number] = await _one(peer, jobs[number], truth, timeout_s)

    start_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    wall_s = time.perf_counter() - start_s
    return [record for record in records if record is not None], wall_s


async def _one(peer: Peer, job: Job, truth: Truth, timeout_s: float) -> Record:
    start_s = time.perf_counter()
    try:
        answer = await asyncio.wait_for(peer.answer(job), timeout_s)
    except Exception as error:  # noqa: BLE001  (whatever a peer does wrong is an error of the peer)
        answer = Answer("", error=f"{type(error).__name__}: {error}")
    return record_of(peer, job, answer, time.perf_counter() - start_s, truth)


def record_of(peer: Peer, job: Job, answer: Answer, latency_s: float, truth: Truth) -> Record:
    """What one answer is worth."""
    key = (job.source, job.task.name)
    reference = (truth.masked if peer.uses_head_masks else truth.instructed).get(key)
    after_s = answer.after_first_token_s
    return Record(
        task=job.task.name,
        audio_s=job.recording.duration_s,
        latency_s=latency_s,
        first_token_s=None if after_s is None else latency_s - after_s,
        inside_s=answer.inside_s,
        num_refused=answer.num_refused,
        error=answer.error,
        same=answer.text == reference,
        right=job.task.spec.parse(answer.text).result == truth.results.get(key),
    )
