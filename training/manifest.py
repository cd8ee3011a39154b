"""Data manifests: which recording has which answer.

Two forms, told apart by their content:

    JSON     {"annotation": [{"path", "text", "task", optional "expand_wav": [...], optional "Q"}, ...]}
    JSONL    one such object a line

Files are relative to the folder of the manifest. For a task on one recording the files of `expand_wav` are
joined to `path` with 0.1 s of silence between. A task on two recordings names both in `paths`, or the second
one in `expand_wav`. `references` are further right answers, for metrics that know several. `Q`, the
instruction of a published manifest, is kept and not used for training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from lalm.audio import SAMPLE_RATE_HZ, AudioLimits, decode_audio
from lalm.audio_input import AudioInput, join
from lalm.errors import AudioError
from lalm.task import TaskSpec
from training.errors import ManifestError

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    path: _Text | None = None
    paths: list[_Text] | None = None
    text: _Text
    task: _Text
    expand_wav: list[_Text] = []
    references: list[_Text] = []
    Q: str | None = None

    @model_validator(mode="after")
    def _one_way_to_name_the_files(self) -> Self:
        if (self.path is None) == (self.paths is None):
            raise ValueError("either path or paths is needed")
        if self.paths is not None and self.expand_wav:
            raise ValueError("paths and expand_wav exclude each other")
        return self

    @property
    def files(self) -> list[str]:
        return self.paths if self.paths is not None else [self.path or "", *self.expand_wav]


@dataclass(frozen=True)
class Example:
    """One annotation: `recordings` holds, for each audio input of the task, the files joined to make it."""

    recordings: tuple[tuple[Path, ...], ...]
    text: str
    instruction: str | None
    manifest: Path
    line: int
    more_references: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """Every right answer, `text` first."""
        return (self.text, *self.more_references)

    def waveforms(
        self, max_duration_s: float, audio_input: AudioInput = AudioInput()
    ) -> list[NDArray[np.float32]]:
        """Each clip as float32 [num_samples], 16 kHz mono; `audio_input` is how the model takes recordings.

        Raises:
            ManifestError: a file that is no audio, or a clip longer than `max_duration_s` seconds.
        """
        recordings = self.recordings
        if audio_input.joined:
            recordings = (tuple(file for files in recordings for file in files),)
        return [self._joined(files, max_duration_s, audio_input.channel) for files in recordings]

    def _joined(
        self, files: tuple[Path, ...], max_duration_s: float, channel: int | None
    ) -> NDArray[np.float32]:
        limits = AudioLimits(max_duration_s=max_duration_s)
        parts: list[NDArray[np.float32]] = []
        for file in files:
            try:
                parts.append(decode_audio(file, limits, channel=channel))
            except AudioError as error:
                raise ManifestError(self.manifest, self.line, f"{file}: {error}") from error
        joined = join(parts)
        if joined.size > max_duration_s * SAMPLE_RATE_HZ:
            duration_s = joined.size / SAMPLE_RATE_HZ
            reason = f"the joined files last {duration_s:.1f} s, {max_duration_s:g} s are allowed"
            raise ManifestError(self.manifest, self.line, reason)
        return joined


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; `sha256` is the hex digest of its bytes."""

    path: Path
    sha256: str
    examples: tuple[Example, ...]


def load_manifest(
    path: Path, task: TaskSpec, task_in_manifest: str | None = None, *, skip_others: bool = False
) -> Manifest:
    """Read and check the manifest of one task.

    task_in_manifest: the name the task has in the manifest, where it is not `task.name`.
    skip_others: leave out what is of another task, down to nothing at all, instead of refusing it.

    Raises:
        ManifestError: unreadable, an unknown key or task, a missing file, an empty text, or an answer that
            the task cannot read; with the line.
    """
    name = task_in_manifest or task.name
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise ManifestError(path, None, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(path, content.count(b"\n", 0, error.start) + 1, "not UTF-8") from error
    entries = _annotations(path, text) if _is_one_object(text) else _lines(path, text)
    if skip_others:
        entries = ((line, value) for line, value in entries if not _is_of_another(value, name))
    examples = tuple(_example(path, line, value, task, name) for line, value in entries)
    if not examples and not skip_others:
        raise ManifestError(path, None, "there is no annotation in it")
    return Manifest(path, hashlib.sha256(content).hexdigest(), examples)


def _is_of_another(value: object, name: str) -> bool:
    return isinstance(value, dict) and value.get("task") != name


def _is_one_object(text: str) -> bool:
    """Whether `text` is the JSON form: its first line alone is no entry."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return first.strip() == "{" or '"annotation"' in first
    return isinstance(value, dict) and "annotation" in value


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestError(path, number, f"not JSON: {error}") from error


def _annotations(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The members of "annotation", each with the line it starts in."""
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ManifestError(path, error.lineno, f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(path, 1, f"not JSON: {error}") from error
    if not isinstance(content, dict) or '"annotation"' not in text:
        raise ManifestError(path, 1, 'not an object with the key "annotation"')
    if set(content) != {"annotation"} or not isinstance(content["annotation"], list):
        reason = 'the only key is "annotation", a list; found ' + ", ".join(sorted(content))
        raise ManifestError(path, 1, reason)
    decoder = json.JSONDecoder()
    position = text.index("[", text.index('"annotation"')) + 1
    for value in content["annotation"]:
        while text[position] in " \t\r\n,":
            position += 1
        yield text.count("\n", 0, position) + 1, value
        _, position = decoder.raw_decode(text, position)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(content)}")
    return content


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        return False


def _example(path: Path, line: int, value: object, task: TaskSpec, name: str) -> Example:
    try:
        entry = _Entry.model_validate(value)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"]) or "annotation"
        reason = "is empty" if detail["type"] == "string_pattern_mismatch" else detail["msg"]
        reason = reason.removeprefix("Value error, ")
        raise ManifestError(path, line, f"{key}: {reason}") from error
    if entry.task != name:
        raise ManifestError(path, line, f"unknown task {entry.task!r}, this recipe is for {name!r}")
    for text in (entry.text, *entry.references):
        if not task.parse(text).format_ok:
            raise ManifestError(path, line, f"text {text!r} is not an answer of task {task.name!r}")
    files = [path.parent / file for file in entry.files]
    for file in files:
        if not _is_file(file):
            raise ManifestError(path, line, f"there is no file {file}")
    if task.num_audios == 1 and entry.paths is None:
        recordings: tuple[tuple[Path, ...], ...] = (tuple(files),)
    elif len(files) == task.num_audios:
        recordings = tuple((file,) for file in files)
    else:
        reason = f"task {task.name!r} needs {task.num_audios} recordings, found {len(files)}"
        raise ManifestError(path, line, reason)
    more = tuple(text.strip() for text in entry.references)
    return Example(recordings, entry.text.strip(), entry.Q, path, line, more)
