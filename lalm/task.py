"""A task: its name, the form of its answer, and how an answer is read.

    text     the answer itself                 "turn on the light"
    label    one of a closed set               "male"
    fields   values split by a separator       "turn on the light | male"
    json     one JSON object of strings        {"transcript": "turn on the light", "gender": "male"}

Reading is tolerant of case and surrounding space, never of content.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    model_validator,
)


class OutputKind(StrEnum):
    """The form of an answer."""

    TEXT = "text"
    LABEL = "label"
    FIELDS = "fields"
    JSON = "json"


def _folded(text: str) -> str:
    """`text` without the differences that do not count: case, and the amount of white space."""
    return " ".join(text.split()).casefold()


def _check_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    if not labels:
        raise ValueError("the label set is empty")
    seen: set[str] = set()
    for label in labels:
        if not label.strip() or label != label.strip():
            raise ValueError(f"label {label!r} is blank or has space around it")
        if _folded(label) in seen:
            raise ValueError(f"label {label!r} stands twice (case and spaces do not count)")
        seen.add(_folded(label))
    return labels


_Labels = Annotated[tuple[str, ...], AfterValidator(_check_labels)]
_FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
_TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
_Title = Annotated[str, StringConstraints(pattern=r"\S", max_length=200)]

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class OutputField(BaseModel):
    """One named value of an answer: free text, or one of `labels`."""

    model_config = _FROZEN

    name: _FieldName
    labels: _Labels | None = None

    def parse(self, text: str) -> str | None:
        """The value that `text` stands for (a label in its canonical spelling), or None."""
        if self.labels is None:
            return text.strip() or None
        folded = _folded(text)
        return next((label for label in self.labels if _folded(label) == folded), None)


class OutputSpec(BaseModel):
    """The form of a task's answer; which of the optional keys it has depends on `kind`."""

    model_config = _FROZEN

    kind: OutputKind
    labels: _Labels | None = None
    separator: str | None = None
    fields: tuple[OutputField, ...] | None = None

    @model_validator(mode="after")
    def _check_keys_of_kind(self) -> Self:
        needed = {
            OutputKind.TEXT: set(),
            OutputKind.LABEL: {"labels"},
            OutputKind.FIELDS: {"separator", "fields"},
            OutputKind.JSON: {"fields"},
        }[self.kind]
        for key in ("labels", "separator", "fields"):
            given = getattr(self, key) is not None
            if given != (key in needed):
                raise ValueError(f"output kind {self.kind.value!r} {'has no' if given else 'needs'} {key!r}")
        self._check_separator()
        self._check_fields()
        return self

    def _check_separator(self) -> None:
        if self.separator is None:
            return
        if not self.separator or self.separator != self.separator.strip():
            raise ValueError(f"separator {self.separator!r} is blank or has space around it")
        for field in self.fields or ():
            for label in field.labels or ():
                if self.separator in label:
                    raise ValueError(f"label {label!r} contains the separator {self.separator!r}")

    def _check_fields(self) -> None:
        if self.fields is None:
            return
        least = 2 if self.kind is OutputKind.FIELDS else 1
        if len(self.fields) < least:
            raise ValueError(f"output kind {self.kind.value!r} needs at least {least} fields")
        names = [field.name for field in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"field {name!r} stands twice")

    @property
    def result_fields(self) -> tuple[OutputField, ...]:
        """The values a result has, for every kind: `text`, `label`, or the named fields."""
        if self.fields is not None:
            return self.fields
        if self.kind is OutputKind.LABEL:
            return (OutputField(name="label", labels=self.labels),)
        return (OutputField(name="text"),)


class LongAudio(StrEnum):
    """What becomes of a recording that is longer than the model hears at once."""

    SPLIT = "split"  # cut at pauses; the answers to the pieces are joined
    FIRST_WINDOW = "first-window"  # what lies behind the first window is not heard
    REFUSE = "refuse"


class ParsedAnswer(NamedTuple):
    """What an answer says; `format_ok` is False as soon as one value is missing (it is None then)."""

    result: dict[str, str | None]
    format_ok: bool


class TaskSpec(BaseModel):
    """One acoustic task.

    long_audio: by default `split` for text on one recording and `refuse` for everything else, since labels
        of pieces cannot be joined.
    segment_s: the longest stretch of audio the model is given at once, in seconds; by default its window.
    needs_speech: a recording without speech is answered with nothing instead of being given to the model.
    """

    model_config = _FROZEN

    name: _TaskName
    title: _Title
    output: OutputSpec
    num_audios: Annotated[StrictInt, Field(ge=1, le=2)] = 1
    max_new_tokens: Annotated[StrictInt, Field(ge=1)]
    long_audio: LongAudio | None = None
    segment_s: Annotated[float, Field(strict=True, ge=0.5, le=3600, allow_inf_nan=False)] | None = None
    needs_speech: Annotated[bool, Field(strict=True, exclude_if=bool)] = True

    @model_validator(mode="after")
    def _check_long_audio(self) -> Self:
        if self.long_audio is LongAudio.SPLIT and not self._can_split:
            raise ValueError("long_audio 'split' is for tasks that answer one recording with text")
        if self.long_audio is LongAudio.FIRST_WINDOW and self.num_audios > 1:
            raise ValueError("long_audio 'first-window' is for tasks on one recording")
        if self.segment_s is not None and self.long_audio_policy is LongAudio.REFUSE:
            raise ValueError("segment_s has no meaning where long_audio is 'refuse'")
        return self

    @property
    def long_audio_policy(self) -> LongAudio:
        """`long_audio`, or what stands for it if the task does not say."""
        if self.long_audio is not None:
            return self.long_audio
        return LongAudio.SPLIT if self._can_split else LongAudio.REFUSE

    @property
    def has_segments(self) -> bool:
        """Whether an answer is text that belongs to stretches of one recording."""
        return self._can_split

    @property
    def _can_split(self) -> bool:
        return self.output.kind is OutputKind.TEXT and self.num_audios == 1

    def parse(self, text: str) -> ParsedAnswer:
        """Read the answer `text` of the model.

        A plain text answer has no format to miss, so it may be empty; a value inside an answer may not.
        """
        if self.output.kind is OutputKind.TEXT:
            return ParsedAnswer({"text": text.strip()}, format_ok=True)
        fields = self.output.result_fields
        values = self._split(text, fields)
        if values is None:
            return ParsedAnswer({field.name: None for field in fields}, format_ok=False)
        result = {field.name: field.parse(value) for field, value in zip(fields, values, strict=True)}
        return ParsedAnswer(result, format_ok=None not in result.values())

    def _split(self, text: str, fields: tuple[OutputField, ...]) -> list[str] | None:
        """One string a field, or None when the answer does not have the form."""
        if self.output.kind is OutputKind.LABEL:
            return [text]
        if self.output.kind is OutputKind.JSON:
            return _json_values(text, [field.name for field in fields])
        parts = text.split(self.output.separator)
        return parts if len(parts) == len(fields) else None


def _json_values(text: str, names: list[str]) -> list[str] | None:
    """The values of the JSON object `text`, if its keys are exactly `names` and its values strings."""
    try:
        pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        return None
    if not text.lstrip().startswith("{"):
        return None
    if sorted(_folded(key) for key, _ in pairs) != sorted(names):
        return None
    values = {_folded(key): value for key, value in pairs}
    if not all(isinstance(value, str) for value in values.values()):
        return None
    return [values[name] for name in names]
