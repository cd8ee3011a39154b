"""A head mask: one bit an attention head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray


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

    @cached_property
    def num_active(self) -> int:
        return int(self.heads.sum())

    @property
    def total(self) -> int:
        """Heads of all layers."""
        return int(self.heads.size)

    @cached_property
    def packed(self) -> bytes:
        """The bits, eight a byte, row by row, the first head in the highest bit."""
        return np.packbits(self.heads).tobytes()

    @cached_property
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
