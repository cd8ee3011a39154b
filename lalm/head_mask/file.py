"""The file a head mask lives in; `masks/README.md` is the page of the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from lalm.errors import HeadMaskError
from lalm.head_mask.identity import ModelIdentity
from lalm.head_mask.value import HeadMask
from lalm.json_file import dump_object, parse_object, write_object
from lalm.task import TaskSpec
from lalm.validation import reason_of

FORMAT: Literal["ahamask/1"] = "ahamask/1"


class MaskFile(BaseModel):
    """A head mask file. `training` and `evaluation` are records for people and tools, free in form.

    A head mask with no active head is refused here: no audio would reach the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["ahamask/1"] = FORMAT
    task: TaskSpec
    model: ModelIdentity
    heads: tuple[str, ...]
    training: Mapping[str, JsonValue]
    evaluation: Mapping[str, JsonValue]

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        head_mask = self.head_mask
        shape, expected = head_mask.heads.shape, (self.model.num_layers, self.model.num_heads)
        if shape != expected:
            raise ValueError(f"heads are {_by(*shape)}, the model of the file has {_by(*expected)}")
        if head_mask.num_active == 0:
            raise ValueError("no head is active")
        return self

    @property
    def head_mask(self) -> HeadMask:
        return HeadMask.from_strings(self.heads)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a file; that its model is the one at hand is for `check_model`.

        Raises:
            HeadMaskError: unreadable, not JSON, another format version, an unknown or missing key, a value
                that is not allowed, or a file that is not named `<task name>.json`.
        """
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise HeadMaskError(path, f"cannot be read: {error.strerror}") from error
        return cls.parse(encoded, path)

    @classmethod
    def parse(cls, encoded: bytes, path: Path) -> Self:
        """The content of a file, read or to be written; `path` is where it lies or will lie.

        Raises:
            HeadMaskError: as `load`.
        """
        try:
            content = parse_object(encoded)
        except ValueError as error:
            raise HeadMaskError(path, str(error)) from error
        if content.get("format") != FORMAT:
            raise HeadMaskError(path, f"format is {content.get('format')!r}, only {FORMAT!r} is known")
        try:
            mask_file = cls.model_validate(content)
        except ValidationError as error:
            raise HeadMaskError(path, reason_of(error)) from error
        mask_file._check_name(path)
        return mask_file

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all: equal content gives equal bytes, one line a layer.

        Raises:
            HeadMaskError: `path` is not named `<task name>.json`, cannot be written, or a number in
                `training` or `evaluation` is not finite.
        """
        self._check_name(path)
        try:
            write_object(path, self._content())
        except OSError as error:
            raise HeadMaskError(path, f"cannot be written: {error.strerror}") from error
        except ValueError as error:
            raise HeadMaskError(path, str(error)) from error

    def encode(self) -> bytes:
        """The bytes that `save` writes.

        Raises:
            ValueError: a number in `training` or `evaluation` is not finite.
        """
        return dump_object(self._content())

    def _content(self) -> dict[str, JsonValue]:
        return {
            "format": self.format,
            "task": self.task.model_dump(mode="json", exclude_none=True),
            "model": self.model.model_dump(mode="json"),
            "heads": list(self.heads),
            "training": _sorted(dict(self.training)),
            "evaluation": _sorted(dict(self.evaluation)),
        }

    def check_model(self, identity: ModelIdentity, path: Path, *, weights: bool = True) -> None:
        """Hold the file against the model at hand; `path` is for the message.

        weights: whether it must have been made for the same weights, or only for the same shape.

        Raises:
            HeadMaskError: made for another family, another shape, or other weights.
        """
        ours, theirs = self.model, identity
        if ours.family != theirs.family:
            raise HeadMaskError(path, f"made for family {ours.family!r}, the model is {theirs.family!r}")
        shape = _by(theirs.num_layers, theirs.num_heads)
        if _by(ours.num_layers, ours.num_heads) != shape:
            made_for = _by(ours.num_layers, ours.num_heads)
            raise HeadMaskError(path, f"made for {made_for}, the model {theirs.name!r} has {shape}")
        if weights and ours.fingerprint != theirs.fingerprint:
            raise HeadMaskError(
                path,
                f"made for {ours.name!r} with fingerprint {ours.fingerprint}, "
                f"the model {theirs.name!r} has {theirs.fingerprint}",
            )

    def _check_name(self, path: Path) -> None:
        if path.name != f"{self.task.name}.json":
            raise HeadMaskError(path, f"task {self.task.name!r} belongs into {self.task.name}.json")


def new_mask_file(
    path: Path,
    task: TaskSpec,
    model: ModelIdentity,
    head_mask: HeadMask,
    training: Mapping[str, JsonValue],
) -> MaskFile:
    """A mask file that nothing was measured with yet; `path` is for the message.

    Raises:
        HeadMaskError: the head mask does not have the model's shape, or no active head.
    """
    try:
        return MaskFile(
            task=task, model=model, heads=tuple(head_mask.to_strings()), training=training, evaluation={}
        )
    except ValidationError as error:
        raise HeadMaskError(path, reason_of(error)) from error


def _by(num_layers: int, num_heads: int) -> str:
    return f"{num_layers} layers x {num_heads} heads"


def _sorted(value: JsonValue) -> JsonValue:
    """`value` with the keys of every object in order."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
