"""What is asked for: recordings and tasks, the same for every peer, drawn from a seed."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lalm.head_mask import MaskFile
from lalm.task import TaskSpec
from training.config import load_config

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "samples"


@dataclass(frozen=True)
class Recording:
    """A 16-bit WAV file: its bytes, and how long it sounds."""

    name: str
    content: bytes
    duration_s: float


@dataclass(frozen=True)
class Task:
    """A task as each side asks for it: by head mask (`mask_file`) or with `instruction`."""

    spec: TaskSpec
    mask_file: MaskFile
    instruction: str

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True)
class Job:
    """One request: one task on one recording. `source` is the sample it was made of."""

    recording: Recording
    source: str
    task: Task


def load_tasks(masks: Path, recipes: Path) -> list[Task]:
    """Every task about one speaker's words or voice that has a mask file and a recipe with an instruction,
    by name."""
    asked = {task for _, task in load_expected(SAMPLES)}
    tasks = []
    for path in sorted(path for path in masks.glob("*.json") if path.stem in asked):
        mask_file = MaskFile.load(path)
        config = load_config(recipes / f"{path.stem}.toml")
        tasks.append(Task(mask_file.task, mask_file, config.all_instructions[0]))
    return tasks


def load_recordings(folder: Path) -> list[Recording]:
    """The WAV files of a folder with one speaker each, by name."""
    recordings = []
    for name in sorted({file for file, _ in load_expected(folder)}):
        path = folder / name
        with wave.open(str(path)) as file:
            duration_s = file.getnframes() / file.getframerate()
        recordings.append(Recording(path.name, path.read_bytes(), duration_s))
    return recordings


def load_expected(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The right result of a file name and a task, of the samples with one speaker each: those that have a
    right transcript."""
    entries = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    spoken = {entry["file"] for entry in entries if entry["task"] == "asr"}
    single = [entry for entry in entries if isinstance(entry["file"], str)]
    return {(e["file"], e["task"]): e["result"] for e in single if e["file"] in spoken}


def fresh(recording: Recording, number: int) -> Recording:
    """The same sound with other bytes: the lowest bit of a sample is flipped, which one says `number`.

    Without this, a peer that keeps what it has computed for a recording would be measured on its memory.
    """
    with wave.open(io.BytesIO(recording.content)) as file:
        parameters, frames = file.getparams(), np.frombuffer(file.readframes(-1), dtype="<i2").copy()
    frames[number % frames.size] ^= 1
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams(parameters)
        file.writeframes(frames.tobytes())
    return Recording(f"{recording.name}#{number}", buffer.getvalue(), recording.duration_s)


def mixed_jobs(
    recordings: Sequence[Recording], tasks: Sequence[Task], count: int, seed: int, first: int = 0
) -> list[Job]:
    """`count` jobs: tasks and recordings in equal shares, in an order that hangs on the seed alone.

    first: number of the first job; no two jobs with different numbers have the same bytes.
    """
    pairs = [(recording, task) for recording in recordings for task in tasks]
    order: list[int] = []
    rng = np.random.default_rng(seed)
    while len(order) < count:
        order += rng.permutation(len(pairs)).tolist()
    jobs = []
    for number, index in enumerate(order[:count], start=first):
        recording, task = pairs[index]
        jobs.append(Job(fresh(recording, number), recording.name, task))
    return jobs
