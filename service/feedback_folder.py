"""The folder of corrected answers: manifests for training where audio may be kept, texts alone where not.

    <folder>/gr.jsonl              {"path": "audio/gr/20261124T205137Z-3f1c…-0.flac", "text": "male", …}
    <folder>/audio/gr/…            recordings as the model heard them; a pair task has "paths"
    <folder>/corrections/gr.jsonl  {"request_id": "3f1c…", "time": "20261124T205137Z", "text": "male", …}

The first is what `training.manifest` reads, the last is no manifest. Times are those of the correction, UTC.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from lalm.audio import SAMPLE_RATE_HZ
from lalm.whole_file import write_whole
from service.errors import FeedbackFullError
from service.settings import SettingsError

AUDIO = "audio"
CORRECTIONS = "corrections"
# What people said is nobody else's business.
_FILE_MODE, _FOLDER_MODE = 0o600, 0o700
# Of one width, so that the order of the strings is that of the times.
_TIME = "%Y%m%dT%H%M%SZ"
_AUDIO_NAME = re.compile(r"(\d{8}T\d{6}Z)-([0-9a-f]+)-\d\.flac")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Correction:
    """The right answer to one task of one request; request_id: the service's own, hexadecimal."""

    request_id: str
    task: str
    text: str


class FeedbackFolder:
    """Every method blocks and may be called from any thread; processes may share a folder.

    max_bytes: what all its files may have together; a correction beyond that is refused.
    now: the time, UTC.

    Raises:
        SettingsError: the folder cannot be made or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention_days: float,
        max_bytes: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._retention = timedelta(days=retention_days)
        self._max_bytes = max_bytes
        self._now = now
        try:
            path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"feedback_dir (AHAMASK_FEEDBACK_DIR): {path}: {error.strerror}") from error
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise SettingsError(f"feedback_dir (AHAMASK_FEEDBACK_DIR): {path}: cannot be written")

    def add(self, correction: Correction, waveforms: Sequence[NDArray[np.float32]]) -> None:
        """Write a correction; it takes the place of an earlier one of the same request and task.

        waveforms: each float32 [num_samples], 16 kHz mono; none for the text alone.

        Raises:
            FeedbackFullError: the folder would be larger than it may be, or the disk is full.
            OSError: the folder cannot be written.
        """
        flacs = [_flac(waveform) for waveform in waveforms]
        with self._locked():
            self._remove_expired()
            time = self._now().strftime(_TIME)
            names = [f"{time}-{correction.request_id}-{number}.flac" for number in range(len(flacs))]
            line = _line(correction, time, names) + "\n"
            num_bytes = sum(map(len, flacs)) + len(line.encode())
            if self._num_bytes() + num_bytes > self._max_bytes:
                raise FeedbackFullError(self._max_bytes)
            try:
                self._write(correction, line, dict(zip(names, flacs, strict=True)))
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise FeedbackFullError(self._max_bytes) from error
                raise

    def remove_expired(self) -> None:
        """Remove what is older than `retention_days`: lines first, then their audio.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._locked():
            self._remove_expired()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _num_bytes(self) -> int:
        return sum(file.lstat().st_size for file in self._path.rglob("*") if file.is_file())

    def _write(self, correction: Correction, line: str, flacs: Mapping[str, bytes]) -> None:
        """The audio first, and gone if its line cannot follow: a manifest names no file that is not there."""
        audio = self._path / AUDIO / correction.task
        list_path = (self._path if flacs else self._path / CORRECTIONS) / f"{correction.task}.jsonl"
        new = [audio / name for name in flacs if not (audio / name).exists()]
        try:
            for name, flac in flacs.items():
                _make_folders(audio.parent, audio)
                write_whole(audio / name, flac, _FILE_MODE)
            _make_folders(list_path.parent)
            _rewrite(list_path, lambda _, request_id: request_id != correction.request_id, line)
        except OSError:
            for file in new:
                file.unlink(missing_ok=True)
            raise
        for file in audio.glob(f"*-{correction.request_id}-*.flac"):
            if file.name not in flacs:
                file.unlink()

    def _remove_expired(self) -> None:
        oldest = (self._now() - self._retention).strftime(_TIME)
        for path in (*self._path.glob("*.jsonl"), *self._path.glob(f"{CORRECTIONS}/*.jsonl")):
            _rewrite(path, lambda time, _: time >= oldest)
        for file in self._path.glob(f"{AUDIO}/*/*.flac"):
            name = _AUDIO_NAME.fullmatch(file.name)
            if name is not None and name[1] < oldest:
                file.unlink()


def _line(correction: Correction, time: str, names: Sequence[str]) -> str:
    said = {"text": correction.text, "task": correction.task}
    paths = [f"{AUDIO}/{correction.task}/{name}" for name in names]
    entry: dict[str, Any] = {"path": paths[0], **said} if len(paths) == 1 else {"paths": paths, **said}
    if not paths:
        entry = {"request_id": correction.request_id, "time": time, **said}
    return json.dumps(entry, ensure_ascii=False)


def _rewrite(path: Path, keep: Callable[[str, str], bool], more: str = "") -> None:
    """Write `path` anew, whole or not at all, without lines whose time and request id are not to be kept.

    Lines of others stay. A file without lines is removed.
    """
    content = path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
    lines = [line for line in content.split("\n") if line]
    kept = [line for line in lines if (origin := _origin(line)) is None or keep(*origin)]
    if len(kept) == len(lines) and not more:
        return
    content = "".join(f"{line}\n" for line in kept) + more
    if content:
        write_whole(path, content.encode(errors="surrogateescape"), _FILE_MODE)
    else:
        path.unlink()


def _origin(line: str) -> tuple[str, str] | None:
    """Time and request id of a line that was written here; None of any other."""
    try:
        entry = json.loads(line)
        if "request_id" in entry:
            return str(entry["time"]), str(entry["request_id"])
        name = entry["path"] if "path" in entry else entry["paths"][0]
        found = _AUDIO_NAME.fullmatch(Path(name).name)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return (found[1], found[2]) if found else None


def _make_folders(*paths: Path) -> None:
    for path in paths:
        path.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def _flac(waveform: NDArray[np.float32]) -> bytes:
    """A waveform float32 [num_samples], 16 kHz, as FLAC of 16 bits; quieter where it would be clipped."""
    peak = float(np.abs(waveform).max(initial=0.0))
    buffer = io.BytesIO()
    sf.write(buffer, waveform / max(1.0, peak), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
