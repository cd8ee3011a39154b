"""A peer without a model, for tests of the benchmark itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.client import Truth
from benchmarks.jobs import Job, Recording, Task
from benchmarks.peers.peer import Answer


class FakePeer:
    """Answers every job with the name of its task, one turn of the loop later."""

    title = "fake"
    pid = 1

    def __init__(
        self, key: str = "fake", *, uses_head_masks: bool = False, fails_at: int | None = None
    ) -> None:
        self.key, self.uses_head_masks, self._fails_at = key, uses_head_masks, fails_at
        self.jobs: list[Job] = []
        self.num_running = self.most_running = 0

    async def start(self) -> None:
        pass

    async def answer(self, job: Job) -> Answer:
        self.jobs.append(job)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        number = len(self.jobs)
        for _ in range(3):
            await asyncio.sleep(0)
        self.num_running -= 1
        if number == self._fails_at:
            raise RuntimeError("out of order")
        return Answer(job.task.name, after_first_token_s=0.0, inside_s=0.0)

    async def answer_tasks(self, recording: Recording, tasks: Sequence[Task]) -> list[Answer]:
        return [await self.answer(Job(recording, recording.name, task)) for task in tasks]

    async def stop(self) -> None:
        pass


def truth_of(recordings: Sequence[Recording], tasks: Sequence[Task]) -> Truth:
    """By which the fake peer's texts are right with an instruction, and not with a head mask."""
    keys = [(recording.name, task.name) for recording in recordings for task in tasks]
    return Truth(dict.fromkeys(keys, "other"), {key: key[1] for key in keys}, {})
