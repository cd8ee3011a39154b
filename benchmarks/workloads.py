"""What is sent to the peers. Every workload runs all of them in every round, each time another one first."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.client import Truth, record_of, run_jobs
from benchmarks.jobs import Job, Recording, Task, fresh, mixed_jobs
from benchmarks.peers.peer import Peer
from benchmarks.stats import Record, summary

Item = TypeVar("Item")
Round = tuple[list[Record], float]


@dataclass
class Cell:
    """All rounds of one peer in one group of a workload."""

    group: str
    peer: str
    rounds: list[Round] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The figures of each round, and of all rounds taken together."""
        records = [record for round_records, _ in self.rounds for record in round_records]
        return {
            "group": self.group,
            "peer": self.peer,
            "rounds": [summary(*each) for each in self.rounds],
            "all": summary(records, sum(wall_s for _, wall_s in self.rounds)),
            "failures": sorted({record.error for record in records if record.error is not None})[:5],
        }


@dataclass(frozen=True)
class Level:
    """So many clients, requests of a round, and rounds if the run has more."""

    num_clients: int
    num_jobs: int
    max_rounds: int | None = None


@dataclass(frozen=True)
class Sizes:
    """How much is sent in a round."""

    rounds: int = 3
    single_jobs: int = 14
    levels: tuple[Level, ...] = (Level(1, 7), Level(8, 16), Level(32, 64), Level(128, 128, max_rounds=1))
    task_counts: tuple[int, ...] = (1, 2, 4, 7)
    task_recordings: int = 2
    batch_jobs: int = 112
    batch_clients: int = 16


QUICK = Sizes(
    rounds=1,
    single_jobs=3,
    levels=(Level(1, 2), Level(8, 8)),
    task_counts=(1, 7),
    task_recordings=1,
    batch_jobs=14,
    batch_clients=7,
)


class Workloads:
    """The workloads over one set of recordings and tasks; equal seeds give equal jobs."""

    def __init__(
        self, recordings: Sequence[Recording], tasks: Sequence[Task], truth: Truth, sizes: Sizes, seed: int
    ) -> None:
        self._recordings, self._truth, self._sizes, self._seed = recordings, truth, sizes, seed
        self._tasks = sorted(tasks, key=self._output_length, reverse=True)
        self._num_jobs = 0

    async def warm_up(self, peer: Peer) -> None:
        """Every task alone, then all of them at once."""
        jobs = self._jobs(len(self._tasks), 0)
        await run_jobs(peer, jobs, 1, self._truth)
        await run_jobs(peer, self._jobs(2 * len(self._tasks), 0), 2 * len(self._tasks), self._truth)

    async def single(self, peers: Sequence[Peer]) -> list[Cell]:
        """One request after the other."""

        async def run(peer: Peer, _: str, number: int) -> Round:
            return await run_jobs(peer, self._jobs(self._sizes.single_jobs, number), 1, self._truth)

        return await self._rounds(peers, ["single"], run)

    async def concurrent(self, peers: Sequence[Peer]) -> list[Cell]:
        """Closed loops of clients with a mix of tasks and lengths."""
        levels = {str(level.num_clients): level for level in self._sizes.levels}

        async def run(peer: Peer, group: str, number: int) -> Round | None:
            level = levels[group]
            if level.max_rounds is not None and number >= level.max_rounds:
                return None
            return await run_jobs(peer, self._jobs(level.num_jobs, number), level.num_clients, self._truth)

        return await self._rounds(peers, list(levels), run)

    async def tasks(self, peers: Sequence[Peer]) -> list[Cell]:
        """One recording under several tasks, those of the longest answers first; a record is a recording."""
        recordings = self._recordings[: self._sizes.task_recordings]

        async def run(peer: Peer, group: str, _: int) -> Round:
            start_s, tasks = time.perf_counter(), self._tasks[: int(group)]
            records = [await self._under_tasks(peer, recording, tasks) for recording in recordings]
            return records, time.perf_counter() - start_s

        return await self._rounds(peers, [str(count) for count in self._sizes.task_counts], run)

    async def batches(self, peers: Sequence[Peer]) -> list[Cell]:
        """The same jobs in the same loop, sorted by task (batches of one head mask) and mixed.

        Only peers that select tasks by head mask take part.
        """
        masked = [peer for peer in peers if peer.uses_head_masks]

        async def run(peer: Peer, group: str, number: int) -> Round:
            jobs = self._jobs(self._sizes.batch_jobs, number)
            if group == "one task":
                jobs.sort(key=lambda job: job.task.name)
            return await run_jobs(peer, jobs, self._sizes.batch_clients, self._truth)

        return await self._rounds(masked, ["one task", "mixed"], run, turn_groups=True)

    async def _rounds(
        self,
        peers: Sequence[Peer],
        groups: Sequence[str],
        run: Callable[[Peer, str, int], Awaitable[Round | None]],
        *,
        turn_groups: bool = False,
    ) -> list[Cell]:
        cells = {(group, peer.key): Cell(group, peer.key) for group in groups for peer in peers}
        for number in range(self._sizes.rounds):
            for group in turned(groups, number) if turn_groups else groups:
                for peer in turned(peers, number):
                    if (outcome := await run(peer, group, number)) is not None:
                        cells[group, peer.key].rounds.append(outcome)
        return list(cells.values())

    async def _under_tasks(self, peer: Peer, recording: Recording, tasks: Sequence[Task]) -> Record:
        self._num_jobs += 1
        upload = fresh(recording, self._num_jobs)
        start_s = time.perf_counter()
        answers = await peer.answer_tasks(upload, tasks)
        latency_s = time.perf_counter() - start_s
        records = [
            record_of(peer, Job(upload, recording.name, task), answer, latency_s, self._truth)
            for task, answer in zip(tasks, answers, strict=True)
        ]
        return Record(
            task="+".join(task.name for task in tasks),
            audio_s=recording.duration_s,
            latency_s=latency_s,
            first_token_s=None,
            inside_s=None,
            num_refused=records[0].num_refused,
            error=next((record.error for record in records if record.error is not None), None),
            same=all(record.same for record in records),
            right=all(record.right for record in records),
        )

    def _jobs(self, count: int, number: int) -> list[Job]:
        """The jobs of round `number`: the same sources and tasks for every peer, with bytes of their own."""
        first, self._num_jobs = self._num_jobs + 1, self._num_jobs + count
        return mixed_jobs(self._recordings, self._tasks, count, self._seed + number, first)

    def _output_length(self, task: Task) -> int:
        return sum(len(text) for (_, name), text in self._truth.masked.items() if name == task.name)


def turned(items: Sequence[Item], number: int) -> list[Item]:
    """`items` with another first one each round."""
    start = number % max(len(items), 1)
    return [*items[start:], *items[:start]]
