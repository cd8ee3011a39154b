"""What a forward pass takes of a row, and what a forward pass is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lalm.head_mask import HeadMask


@dataclass(frozen=True)
class Chunk:
    """Consecutive positions of one row.

    slot: its place in the key-value cache. start: positions that are there already.
    length: positions of this chunk. num_outputs: at how many of them, the last ones, the output is asked for.
    parents: the last len(parents) positions are a tree (`draft.py`), in which each sees those it follows; the
        others see themselves and all before.
    """

    slot: int
    start: int
    length: int
    head_mask: HeadMask | None
    num_outputs: int = 1
    parents: Sequence[int] = ()

    @property
    def stop(self) -> int:
        return self.start + self.length

    @cached_property
    def positions(self) -> Tensor:
        """Of each position of the chunk, the number of those it sees without itself: int [length]."""
        trunk = torch.arange(self.start, self.stop - len(self.parents))
        if not self.parents:
            return trunk
        return torch.cat([trunk, self.stop - len(self.parents) + self._tree.sum(1) - 1])

    @cached_property
    def visible(self) -> Tensor:
        """Which keys each position of the chunk sees: bool [length, stop]."""
        visible = torch.ones(self.length, self.stop, dtype=torch.bool).tril(self.start)
        if self.parents:
            visible[-len(self.parents) :, -len(self.parents) :] = self._tree
        return visible

    @cached_property
    def _tree(self) -> Tensor:
        """Which nodes of the tree each node sees, itself among them."""
        tree = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                tree[node] |= tree[parent]
        return tree


class ForwardPass(Protocol):
    """The decoder over the rows of some slots, their keys and values in a cache that has room for them.

    takes_parts: whether a prompt may come in several chunks. takes_trees: whether a chunk may end in a tree.
    """

    takes_parts: bool
    takes_trees: bool

    def prepare(self, head_masks: Sequence[HeadMask]) -> None:
        """Make what rows under these head masks will need, so that the first of them need not wait for it."""

    def prefill(self, inputs: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
        """Run parts of prompts; a row's first one makes its slot its own.

        inputs: one [length, hidden] a chunk. Returns the last hidden states at the outputs of each chunk, in
        order: [sum of num_outputs, hidden].
        """

    def decode(self, input_ids: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """Add one token to each row, given in the order of their slots: [batch, hidden]."""
