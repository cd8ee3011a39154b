"""A head mask, and the file it lives in (`masks/README.md` is the page of the format).

HeadMask        one bit an attention head: 1 = head kept, 0 = silenced
ModelIdentity   the model a head mask was made for; head masks do not transfer
MaskFile        a task, its model, its head mask and where that came from, as JSON
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from lalm.errors import HeadMaskError
from lalm.json_file import dump_object, parse_object, write_object
from lalm.task import TaskSpec

FORMAT: Literal["ahamask/1"] = "ahamask/1"


@dataclass(frozen=True, eq=False)
class HeadMask:
    """Which heads of a decoder are active.

    heads: bool [num_layers, num_heads], copied and read-only; anything of zeros and ones is accepted.
    Two head masks are equal when their shapes and bits are; they can be keys of a dict.

    Raises:
        ValueError: not two-dimensional, without a head, or with values other than 0 and 1.
    """

    heads: NDArray[np.bool_]

    def __post_init__(self) -> None:
        given = np.asarray(self.heads)
        if given.ndim != 2 or given.size == 0:
            raise ValueError(f"a head mask is [num_layers, num_heads], not of shape {given.shape}")
        heads = given.astype(np.bool_)
        if not np.array_equal(heads, given):
            raise ValueError("a head mask holds zeros and ones only")
        frozen = np.frombuffer(heads.tobytes(), dtype=np.bool_).reshape(heads.shape)
        object.__setattr__(self, "heads", frozen)

    @classmethod
    def ones(cls, num_layers: int, num_heads: int) -> Self:
        """The head mask that changes nothing."""
        return cls(np.ones((num_layers, num_heads), dtype=np.bool_))

    @classmethod
    def from_strings(cls, rows: Sequence[str]) -> Self:
        """From one string of 0 and 1 a layer, the first layer first."""
        if not rows:
            raise ValueError("there is no layer")
        for layer, row in enumerate(rows):
            if not row or set(row) - {"0", "1"}:
                raise ValueError(f"layer {layer} is not a string of 0 and 1: {row!r}")
            if len(row) != len(rows[0]):
                raise ValueError(f"layer {layer} has {len(row)} heads, layer 0 has {len(rows[0])}")
        return cls(np.array([[head == "1" for head in row] for row in rows], dtype=np.bool_))

    @classmethod
    def random(cls, num_active: int, rng: np.random.Generator, shape: tuple[int, int]) -> Self:
        """A head mask of `shape` with exactly `num_active` active heads, each choice equally likely."""
        total = shape[0] * shape[1]
        if not 0 <= num_active <= total:
            raise ValueError(f"{num_active} active heads do not fit into {total}")
        flat = np.zeros(total, dtype=np.bool_)
        flat[rng.permutation(total)[:num_active]] = True
        return cls(flat.reshape(shape))

    def to_strings(self) -> list[str]:
        """One string of 0 and 1 a layer; the inverse of `from_strings`."""
        return ["".join("1" if head else "0" for head in row) for row in self.heads]

    @property
    def num_layers(self) -> int:
        return int(self.heads.shape[0])

    @property
    def num_heads(self) -> int:
        """Heads of one layer."""
        return int(self.heads.shape[1])

    @property
    def num_active(self) -> int:
        return int(self.heads.sum())

    @property
    def total(self) -> int:
        """Heads of all layers."""
        return int(self.heads.size)

    @property
    def packed(self) -> bytes:
        """The bits, eight a byte, row by row, the first head in the highest bit."""
        return np.packbits(self.heads).tobytes()

    @property
    def sha256(self) -> str:
        """Hex digest of shape and bits."""
        shape = f"{self.num_layers}x{self.num_heads}:".encode()
        return hashlib.sha256(shape + self.packed).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadMask):
            return NotImplemented
        return self.heads.shape == other.heads.shape and self.packed == other.packed

    def __hash__(self) -> int:
        return hash((self.heads.shape, self.packed))

    def __repr__(self) -> str:
        return f"HeadMask({self.num_active} of {self.num_layers} x {self.num_heads}, {self.sha256[:12]})"


class ModelIdentity(BaseModel):
    """The model a head mask belongs to; `fingerprint` is a digest of its weights, `name` is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Annotated[str, StringConstraints(min_length=1)]
    name: Annotated[str, StringConstraints(min_length=1)]
    fingerprint: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    num_layers: Annotated[StrictInt, Field(ge=1)]
    num_heads: Annotated[StrictInt, Field(ge=1)]


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

    def check_model(self, identity: ModelIdentity, path: Path) -> None:
        """Hold the file against the model at hand; `path` is for the message.

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
        if ours.fingerprint != theirs.fingerprint:
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


def reason_of(error: ValidationError) -> str:
    """Every complaint of pydantic in one line, each with the key it is about."""
    complaints = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            complaints.append(f"unknown key {key!r}")
        elif detail["type"] == "missing":
            complaints.append(f"key {key!r} is missing")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            complaints.append(f"{key}: {message}" if key else message)
    return "; ".join(complaints)
