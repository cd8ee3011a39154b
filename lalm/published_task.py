"""The task of a published mask, from the name of its folder.

The name is what the task gives, in the order of the answer, then the data it was trained on:

    asr_librispeech                transcript
    gender_asr_librispeech         gender | transcript
    asr_gender_json_librispeech    {"ASR": transcript, "GR": gender}

Source: README of the published masks of AHAMask (arXiv 2509.01787): naming, separator and JSON keys.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lalm.errors import HeadMaskError
from lalm.task import TaskSpec
from lalm.validation import reason_of

SEPARATOR = "|"
_TEXT_TOKENS, _LABEL_TOKENS = 200, 16  # longest answers; transcripts: "up to 100 to 200" in the paper
_GENERIC = ("checkpoint", "mask", "model")  # file names that say nothing


class _Part(NamedTuple):
    """One value of an answer; free text where `labels` is None."""

    task: str
    title: str
    field: str
    labels: tuple[str, ...] | None = None
    num_audios: int = 1
    needs_speech: bool = True


_PARTS = (
    _Part("asr", "Speech recognition", "transcript"),
    _Part("s2tt", "Speech to text translation", "translation"),
    _Part("osr", "Overlapped speech recognition", "transcript"),
    _Part("aac", "Audio captioning", "caption", needs_speech=False),
    _Part("gr", "Gender recognition", "gender", ("male", "female")),
    _Part("ser", "Speech emotion recognition", "emotion", ("angry", "happy", "neutral", "sad")),
    _Part("asv", "Speaker verification", "same_speaker", ("yes", "no"), num_audios=2),
)
_BY_WORD: Mapping[str, _Part] = {part.task: part for part in _PARTS}
_OTHER_WORDS = {"gender": "gr", "emotion": "ser"}


def name_of(path: Path) -> str:
    """What a file is called for `infer_task`: its own name, or its folder's if that says nothing."""
    return path.resolve().parent.name if path.stem.lower().startswith(_GENERIC) else path.stem


def infer_task(name: str, path: Path, labels: tuple[str, ...] | None = None) -> TaskSpec:
    """The task that a folder called `name` holds a mask for; `path` is for the message.

    labels: the label set of a task with one label, in place of the usual one.

    Raises:
        HeadMaskError: the name does not begin with a known task, or `labels` do not fit.
    """
    words = [_OTHER_WORDS.get(word, word) for word in name.lower().replace("-", "_").split("_")]
    parts: list[_Part] = []
    while len(parts) < len(words) and words[len(parts)] in _BY_WORD:
        parts.append(_BY_WORD[words[len(parts)]])
    if not parts:
        known = ", ".join(sorted([*_BY_WORD, *_OTHER_WORDS]))
        raise HeadMaskError(path, f"{name!r} tells no task; names begin with one or more of {known}")
    as_json = words[len(parts) : len(parts) + 1] == ["json"]
    if labels is not None:
        if len(parts) > 1 or as_json or parts[0].labels is None:
            raise HeadMaskError(path, f"{name!r} is not a task with one label, so labels do not fit it")
        parts = [parts[0]._replace(labels=labels)]
    content = {
        "name": "-".join([part.task for part in parts] + ["json"] * as_json),
        "title": _title(parts, as_json=as_json),
        "output": _output(parts, as_json=as_json),
        "num_audios": max(part.num_audios for part in parts),
        "needs_speech": all(part.needs_speech for part in parts),
        "max_new_tokens": _LABEL_TOKENS if all(part.labels for part in parts) else _TEXT_TOKENS,
    }
    return _spec(content, path)


def is_complete(keys: Mapping[str, Any]) -> bool:
    """Whether `keys` say all that a task needs, so that nothing has to be inferred."""
    return {key for key, field in TaskSpec.model_fields.items() if field.is_required()} <= set(keys)


def read_overrides(path: Path) -> dict[str, dict[str, Any]]:
    """A TOML file with a table a folder name: keys of a task that replace the inferred ones.

    Raises:
        HeadMaskError: unreadable, not TOML, or something else than tables in it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadMaskError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise HeadMaskError(path, f"not TOML: {error}") from error
    for name, table in content.items():
        if not isinstance(table, dict):
            raise HeadMaskError(path, f"{name!r} is not a table of keys of a task")
    return content


def override(task: TaskSpec | None, keys: Mapping[str, Any], path: Path) -> TaskSpec:
    """`task`, if there is one, with some of its keys replaced, `output` as a whole.

    Raises:
        HeadMaskError: an unknown key, or a value that is not allowed.
    """
    inferred = task.model_dump(mode="json", exclude_none=True) if task else {}
    return _spec(inferred | dict(keys), path)


def _spec(content: Mapping[str, Any], path: Path) -> TaskSpec:
    try:
        return TaskSpec.model_validate(content)
    except ValidationError as error:
        raise HeadMaskError(path, f"task: {reason_of(error)}") from error


def _title(parts: list[_Part], *, as_json: bool) -> str:
    first, *others = (part.title for part in parts)
    title = ", then ".join([first, *(other[0].lower() + other[1:] for other in others)])
    return f"{title}, as JSON" if as_json else title


def _output(parts: list[_Part], *, as_json: bool) -> dict[str, Any]:
    if as_json:
        return {"kind": "json", "fields": [_field(part.task, part) for part in parts]}
    if len(parts) > 1:
        return {
            "kind": "fields",
            "separator": SEPARATOR,
            "fields": [_field(part.field, part) for part in parts],
        }
    labels = parts[0].labels
    return {"kind": "text"} if labels is None else {"kind": "label", "labels": labels}


def _field(name: str, part: _Part) -> dict[str, Any]:
    return {"name": name} if part.labels is None else {"name": name, "labels": part.labels}
