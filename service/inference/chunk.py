"""What a forward pass takes of a row, and what a forward pass is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lalm.head_mask import HeadMask


@dataclass(frozen=True)
class Chunk:
    """Consecutive positions of one row.

    slot: its place in the key-value cache. start: positions that are there already.
    length: positions of this chunk. num_outputs: at how many of them, the last ones, the output is asked for.
    """

    slot: int
    start: int
    length: int
    head_mask: HeadMask | None
    num_outputs: int = 1

    @property
    def stop(self) -> int:
        return self.start + self.length


class ForwardPass(Protocol):
    """The decoder over the rows of some slots, their keys and values in a cache that has room for them."""

    def prefill(self, inputs: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
        """Run parts of prompts; a row's first one makes its slot its own.

        inputs: one [length, hidden] a chunk. Returns the last hidden states at the outputs of each chunk, in
        order: [sum of num_outputs, hidden].
        """

    def decode(self, input_ids: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """Add one token to each row, given in the order of their slots: [batch, hidden]."""
