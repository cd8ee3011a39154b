from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.client import Truth, run_jobs
from benchmarks.jobs import REPOSITORY, SAMPLES, Recording, Task, load_recordings, load_tasks, mixed_jobs
from benchmarks.peers.peer import Answer
from benchmarks.workloads import Level, Sizes, Workloads, turned
from tests.unit.benchmarks.fakes import FakePeer, truth_of

SIZES = Sizes(
    rounds=2,
    single_jobs=3,
    levels=(Level(2, 4), Level(8, 8, max_rounds=1)),
    task_counts=(1, 7),
    task_recordings=2,
    batch_jobs=14,
    batch_clients=4,
)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return load_recordings(SAMPLES)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return load_tasks(REPOSITORY / "masks" / "tiny-lalm", REPOSITORY / "training" / "recipes")


@pytest.fixture(scope="module")
def truth(recordings: list[Recording], tasks: list[Task]) -> Truth:
    return truth_of(recordings, tasks)


def test_so_many_clients_and_every_job_once(
    recordings: list[Recording], tasks: list[Task], truth: Truth
) -> None:
    peer, jobs = FakePeer(), mixed_jobs(recordings, tasks, 40, seed=0)
    records, wall_s = asyncio.run(run_jobs(peer, jobs, 5, truth))
    assert peer.most_running == 5
    assert sorted(map(id, peer.jobs)) == sorted(map(id, jobs))
    assert [record.task for record in records] == [job.task.name for job in jobs]
    assert all(record.same and record.error is None and 0 <= record.latency_s <= wall_s for record in records)


def test_a_peer_that_fails_or_hangs_costs_one_error(
    recordings: list[Recording], tasks: list[Task], truth: Truth
) -> None:
    jobs = mixed_jobs(recordings, tasks, 6, seed=0)
    records, _ = asyncio.run(run_jobs(FakePeer(fails_at=4), jobs, 1, truth))
    assert [record.error for record in records] == [
        None,
        None,
        None,
        "RuntimeError: out of order",
        None,
        None,
    ]

    class Hanging(FakePeer):
        async def answer(self, job: Any) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError

    records, _ = asyncio.run(run_jobs(Hanging(), jobs[:2], 2, truth, timeout_s=0.01))
    assert [(record.error or "").split(":")[0] for record in records] == ["TimeoutError"] * 2


def test_texts_are_held_against_the_prompt_of_the_peer(
    recordings: list[Recording], tasks: list[Task], truth: Truth
) -> None:
    jobs = mixed_jobs(recordings, tasks, 2, seed=0)
    for uses_head_masks in (False, True):
        records, _ = asyncio.run(run_jobs(FakePeer(uses_head_masks=uses_head_masks), jobs, 1, truth))
        assert [record.same for record in records] == [not uses_head_masks] * 2


def workloads_of(recordings: Sequence[Recording], tasks: Sequence[Task], truth: Truth) -> Workloads:
    return Workloads(recordings, tasks, truth, SIZES, seed=0)


def test_every_peer_gets_the_same_sources_and_tasks_but_no_bytes_twice(
    recordings: list[Recording], tasks: list[Task], truth: Truth
) -> None:
    peers = [FakePeer("a"), FakePeer("b")]
    cells = asyncio.run(workloads_of(recordings, tasks, truth).single(peers))
    assert [(cell.group, cell.peer, len(cell.rounds)) for cell in cells] == [
        ("single", "a", 2),
        ("single", "b", 2),
    ]
    asked = [[(job.source, job.task.name) for job in peer.jobs] for peer in peers]
    assert asked[0] == asked[1]
    assert len({job.recording.content for peer in peers for job in peer.jobs}) == 12


def test_levels_may_have_fewer_rounds(recordings: list[Recording], tasks: list[Task], truth: Truth) -> None:
    cells = asyncio.run(workloads_of(recordings, tasks, truth).concurrent([FakePeer("a")]))
    assert [(cell.group, len(cell.rounds), cell.as_json()["all"]["requests"]) for cell in cells] == [
        ("2", 2, 8),
        ("8", 1, 8),
    ]


def test_one_recording_under_several_tasks_is_one_record(
    recordings: list[Recording], tasks: list[Task], truth: Truth
) -> None:
    peer = FakePeer("a")
    one, seven = asyncio.run(workloads_of(recordings, tasks, truth).tasks([peer]))
    assert [one.as_json()["all"]["requests"], seven.as_json()["all"]["requests"]] == [4, 4]
    assert len(peer.jobs) == 4 * 1 + 4 * 7
    assert {record.task.count("+") for records, _ in seven.rounds for record in records} == {6}


def test_batches_of_one_task_and_mixed_ones_have_the_same_jobs(
    recordings: list[Recording], tasks: list[Task], truth: Truth
) -> None:
    masked = FakePeer("a", uses_head_masks=True)
    cells = asyncio.run(workloads_of(recordings, tasks, truth).batches([FakePeer("b"), masked]))
    assert [(cell.group, cell.peer) for cell in cells] == [("one task", "a"), ("mixed", "a")]
    rounds = [masked.jobs[start : start + 14] for start in range(0, 56, 14)]
    first, second = ([(job.source, job.task.name) for job in jobs] for jobs in rounds[:2])
    assert sorted(first) == sorted(second)
    assert [name for _, name in first] == sorted(name for _, name in first)
    assert [name for _, name in second] != sorted(name for _, name in second)


def test_turns() -> None:
    assert [turned("abc", number) for number in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]
    assert turned([], 3) == []
