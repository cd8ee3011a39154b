"""What may be corrected, and the folder that corrections are written to."""

from __future__ import annotations

import errno
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from lalm.task import TaskSpec
from service import feedback_folder
from service.errors import FeedbackFullError, UnknownRequestError
from service.feedback import REQUEST_BYTES, RecentRequest, RecentRequests
from service.feedback_folder import Correction, FeedbackFolder
from service.settings import SettingsError
from tests.toy import toy_waveform
from training.manifest import load_manifest

GR = TaskSpec.model_validate(
    {
        "name": "gr",
        "title": "Gender",
        "output": {"kind": "label", "labels": ["male", "female"]},
        "max_new_tokens": 8,
    }
)
PAIR = GR.model_copy(update={"num_audios": 2})


class Clock:
    """A time that only the test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 24, 20, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def folder_at(path: Path, clock: Clock, max_bytes: int = 2**20) -> FeedbackFolder:
    return FeedbackFolder(path, retention_days=2, max_bytes=max_bytes, now=clock)


def correction(number: int, text: str = "male") -> Correction:
    return Correction(f"{number:032x}", "gr", text)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_in(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_corrections_with_audio_are_a_manifest(tmp_path: Path, clock: Clock) -> None:
    folder = folder_at(tmp_path / "new" / "feedback", clock)
    waveforms = [toy_waveform(0.3, seed) for seed in range(2)]
    for number, waveform in enumerate(waveforms):
        folder.add(correction(number, ("male", "female")[number]), [waveform])
    manifest = load_manifest(tmp_path / "new" / "feedback" / "gr.jsonl", GR)
    assert [example.text for example in manifest.examples] == ["male", "female"]
    for example, waveform in zip(manifest.examples, waveforms, strict=True):
        ((file,),) = example.recordings
        assert sf.info(file).format == "FLAC"
        (decoded,) = example.waveforms(30.0)
        assert np.abs(decoded - waveform).max() < 2**-14
    for file in (tmp_path / "new" / "feedback").rglob("*"):
        mode = stat.S_IMODE(file.stat().st_mode)
        assert mode == (0o700 if file.is_dir() else 0o600), file


def test_the_recordings_of_a_pair_stay_two(tmp_path: Path, clock: Clock) -> None:
    loud = 3 * toy_waveform(0.2)
    folder_at(tmp_path, clock).add(correction(1), [loud, toy_waveform(0.25)])
    (example,) = load_manifest(tmp_path / "gr.jsonl", PAIR).examples
    first, second = example.waveforms(30.0)
    assert (len(first), len(second)) == (3200, 4000)
    assert np.abs(first - loud / np.abs(loud).max()).max() < 2**-14  # quieter, not clipped


def test_without_audio_there_is_no_manifest(tmp_path: Path, clock: Clock) -> None:
    folder_at(tmp_path, clock).add(correction(1, "weiß\u2028\n{"), [])
    assert files_in(tmp_path) == ["corrections/gr.jsonl"]
    (line,) = (tmp_path / "corrections" / "gr.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(line) == {
        "request_id": f"{1:032x}",
        "time": "20261124T200000Z",
        "text": "weiß\u2028\n{",
        "task": "gr",
    }


@pytest.mark.parametrize("num_audios", [0, 1])
def test_a_second_correction_takes_the_place_of_the_first(
    tmp_path: Path, clock: Clock, num_audios: int
) -> None:
    folder, audio = folder_at(tmp_path, clock), [toy_waveform(0.2)] * num_audios
    folder.add(correction(1, "male"), audio)
    folder.add(correction(2, "male"), audio)
    clock.time += timedelta(hours=1)
    folder.add(correction(1, "female"), audio)
    path = tmp_path / "gr.jsonl" if num_audios else tmp_path / "corrections" / "gr.jsonl"
    assert [line["text"] for line in lines_of(path)] == ["male", "female"]
    assert len(files_in(tmp_path)) == 1 + 2 * num_audios
    if num_audios:
        assert len(load_manifest(path, GR).examples) == 2


def test_what_is_too_old_is_removed_and_nothing_else(tmp_path: Path, clock: Clock) -> None:
    folder = folder_at(tmp_path, clock)
    own = tmp_path / "own.jsonl"
    own.write_bytes(b'{"path": "mine.wav", "text": "male", "task": "gr"}\r\nnot JSON\n[]\n\xff\n')
    before = own.read_bytes()
    folder.add(correction(1), [toy_waveform(0.2)])
    folder.add(correction(2), [])
    clock.time += timedelta(days=1)
    folder.add(correction(3), [toy_waveform(0.2)])
    clock.time += timedelta(days=1, seconds=1)
    folder.remove_expired()
    assert [file.rsplit("/")[-1][:8] for file in files_in(tmp_path)] == ["20261125", "gr.jsonl", "own.json"]
    assert len(load_manifest(tmp_path / "gr.jsonl", GR).examples) == 1
    clock.time += timedelta(days=1)
    folder.add(correction(4), [])  # a correction removes, too
    assert files_in(tmp_path) == ["corrections/gr.jsonl", "own.jsonl"]
    assert own.read_bytes() == before


def test_a_full_folder_takes_no_more_and_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)  # some 8 kB as FLAC
    folder = folder_at(tmp_path, clock, max_bytes=20_000)
    folder.add(correction(1), [noise])
    folder.add(correction(2), [noise])
    before = files_in(tmp_path)
    with pytest.raises(FeedbackFullError, match="20000 bytes"):
        folder.add(correction(3), [noise])
    assert files_in(tmp_path) == before
    assert len(load_manifest(tmp_path / "gr.jsonl", GR).examples) == 2
    clock.time += timedelta(days=3)
    folder.add(correction(3), [noise])
    assert len(load_manifest(tmp_path / "gr.jsonl", GR).examples) == 1


def test_a_full_disk_is_a_full_folder(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, waveform = folder_at(tmp_path, clock), toy_waveform(0.1)
    folder.add(correction(1), [waveform])
    with monkeypatch.context() as patch:
        whole = feedback_folder.write_whole

        def full(path: Path, content: bytes, mode: int) -> None:
            if path.suffix == ".jsonl":
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(path, content, mode)

        patch.setattr(feedback_folder, "write_whole", full)
        with pytest.raises(FeedbackFullError):
            folder.add(correction(2), [waveform])
    assert len(load_manifest(tmp_path / "gr.jsonl", GR).examples) == 1
    assert len(files_in(tmp_path)) == 2  # no audio without its line
    folder.add(correction(2), [waveform])
    assert len(load_manifest(tmp_path / "gr.jsonl", GR).examples) == 2


def test_nothing_is_lost_between_writers(tmp_path: Path, clock: Clock) -> None:
    folders = [folder_at(tmp_path, clock) for _ in range(2)]
    waveform = toy_waveform(0.1)
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(folders[number % 2].add, correction(number), [waveform] if number % 3 else [])
            for number in range(30)
        ]
        for job in jobs:
            job.result()
    assert len(load_manifest(tmp_path / "gr.jsonl", GR).examples) == 20
    assert {line["request_id"] for line in lines_of(tmp_path / "corrections" / "gr.jsonl")} == {
        f"{number:032x}" for number in range(0, 30, 3)
    }


def test_a_folder_that_is_a_file_stops_the_start(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingsError, match="AHAMASK_FEEDBACK_DIR"):
            folder_at(path, clock)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path, clock: Clock) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SettingsError, match="cannot be written"):
            folder_at(tmp_path, clock)
    finally:
        tmp_path.chmod(0o700)


def request_of(num_bytes: int, key_id: str | None = None) -> RecentRequest:
    return RecentRequest({"gr": GR}, key_id, (bytes(num_bytes),))


def test_recent_requests_have_so_many_bytes() -> None:
    recent = RecentRequests(3 * REQUEST_BYTES + 300, 60.0)
    for name in ("a", "b", "c"):
        recent.keep(name, request_of(100))
    assert recent.num_bytes == 3 * REQUEST_BYTES + 300
    recent.keep("d", request_of(150))  # two of the oldest give way
    with pytest.raises(UnknownRequestError):
        recent.find("a", None)
    assert recent.find("c", None).num_bytes == REQUEST_BYTES + 100
    assert recent.num_bytes == 2 * REQUEST_BYTES + 250
    recent.keep("huge", request_of(3 * REQUEST_BYTES))
    assert recent.find("d", None) == request_of(150)


def test_recent_requests_are_forgotten_and_belong_to_a_key() -> None:
    now_s = 0.0
    recent = RecentRequests(2**20, 60.0, now=lambda: now_s)
    recent.keep("a", request_of(100, "mine"))
    for other in ("yours", None):
        with pytest.raises(UnknownRequestError):
            recent.find("a", other)
    now_s = 60.0
    assert recent.find("a", "mine").key_id == "mine"
    now_s = 60.5
    recent.expire()
    assert recent.num_bytes == 0
    with pytest.raises(UnknownRequestError, match="60 s"):
        recent.find("a", "mine")
