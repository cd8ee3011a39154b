from __future__ import annotations

import io
import wave
from collections import Counter

import numpy as np
import pytest

from benchmarks.jobs import (
    REPOSITORY,
    SAMPLES,
    Recording,
    Task,
    fresh,
    load_expected,
    load_recordings,
    load_tasks,
    mixed_jobs,
)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return load_recordings(SAMPLES)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return load_tasks(REPOSITORY / "masks" / "tiny-lalm", REPOSITORY / "training" / "recipes")


def samples_of(recording: Recording) -> np.ndarray:
    with wave.open(io.BytesIO(recording.content)) as file:
        return np.frombuffer(file.readframes(-1), dtype="<i2").astype(np.int64)


def test_every_shipped_task_about_one_recording_of_one_speaker_is_asked_for_by_mask_and_by_instruction(
    tasks: list[Task],
) -> None:
    shipped = {path.stem for path in (REPOSITORY / "masks" / "tiny-lalm").glob("*.json")}
    assert {task.name for task in tasks} == shipped - {"aac", "asv", "osr"}
    assert len({task.instruction for task in tasks}) == len(tasks)
    assert all(task.mask_file.head_mask.num_active for task in tasks)


def test_every_sample_has_a_right_answer_to_every_task(
    recordings: list[Recording], tasks: list[Task]
) -> None:
    expected = load_expected(SAMPLES)
    assert expected.keys() == {(recording.name, task.name) for recording in recordings for task in tasks}
    assert all(0.5 < recording.duration_s < 30 for recording in recordings)


def test_a_fresh_recording_sounds_the_same_and_has_other_bytes(recordings: list[Recording]) -> None:
    original, one, two = recordings[0], fresh(recordings[0], 1), fresh(recordings[0], 2)
    assert len({original.content, one.content, two.content}) == 3
    difference = samples_of(one) - samples_of(original)
    assert (np.flatnonzero(difference).tolist(), abs(difference).max()) == ([1], 1)
    assert one.duration_s == original.duration_s
    assert fresh(original, 1) == one


def test_jobs_hang_on_the_seed_alone_and_share_out_evenly(
    recordings: list[Recording], tasks: list[Task]
) -> None:
    count = 2 * len(recordings) * len(tasks)
    jobs = mixed_jobs(recordings, tasks, count, seed=3)
    again = mixed_jobs(recordings, tasks, count, seed=3, first=500)
    assert [(job.source, job.task.name) for job in jobs] == [(job.source, job.task.name) for job in again]
    assert {job.recording.content for job in jobs}.isdisjoint(job.recording.content for job in again)
    assert set(Counter((job.source, job.task.name) for job in jobs).values()) == {2}
    other = mixed_jobs(recordings, tasks, count, seed=4)
    assert [job.task.name for job in other] != [job.task.name for job in jobs]
