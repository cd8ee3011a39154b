"""Rows of which each asks at one position, as in a decode step: their keys, their values, and their mixing.

Scores and mixing are computed row by row, over the row's own part of the cache; or for all rows together,
where their slots and lengths are so alike that little of it is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from service.inference.chunk import Chunk
from service.inference.head_slices import LayerSlice

# How many keys the one call for all rows may see for each that is wanted.
_MAX_PADDING = 2

# Keys and values of one layer, each [num_slots, num_kv_heads, num_positions, head_dim].
Stored = tuple[Tensor, Tensor]


class SingleRows:
    """For one pass; the last position of each chunk asks."""

    def __init__(self, chunks: Sequence[Chunk], scale: float) -> None:
        self._chunks = chunks
        self._scale = scale
        self._slots, self._places = torch.tensor([[chunk.slot, chunk.stop - 1] for chunk in chunks]).T
        self._joint = JointRows.of(chunks)

    def store(self, part: LayerSlice, keys: Tensor, values: Tensor, stored: Stored) -> None:
        """Write keys and values of these positions, [rows, num_kv, head_dim], into their slots."""
        slots, places = self._slots, self._places
        if isinstance(part.kv_heads, Tensor):
            slots, places = slots[:, None], places[:, None]
        for kept, new in zip(stored, (keys, values), strict=True):
            kept[slots, part.kv_heads, places] = new

    def mix(self, part: LayerSlice, queries: Tensor, stored: Stored) -> Tensor:
        """Of queries [rows, num_q, head_dim]: the same shape."""
        # The heads that share keys ask as so many positions would: keys and values are not copied.
        uneven = len(part.spread) > part.num_q
        asked = queries[:, part.spread] if uneven else queries
        asked = asked.reshape(len(queries), part.num_kv, -1, queries.shape[-1])
        if self._joint is not None:
            mixed = self._joint.mix(part, asked, stored, self._scale)
        else:
            mixed = torch.cat([self._mix_row(part, row, asked, stored) for row in range(len(asked))])
        heads = mixed.flatten(1, 2)
        return heads[:, part.gather] if uneven else heads

    def _mix_row(self, part: LayerSlice, row: int, asked: Tensor, stored: Stored) -> Tensor:
        """Of one row: [1, num_kv, heads, head_dim], as `asked`."""
        chunk = self._chunks[row]
        keys, values = (kept[chunk.slot, part.kv_heads, : chunk.stop][None] for kept in stored)
        return F.scaled_dot_product_attention(asked[row : row + 1], keys, values, scale=self._scale)


@dataclass(frozen=True)
class JointRows:
    """Rows that are mixed in one call, over the slots from the first to the last of theirs.

    slots: these. places: where each row stands among them, int [rows]. num_positions: the longest row's.
    visible: float [slots, 1, 1, num_positions], 0 where a slot's row looks and -inf elsewhere; a slot without
    a row sees one position, and nobody asks for what it says.
    """

    places: Tensor
    slots: slice
    num_positions: int
    visible: Tensor

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> JointRows | None:
        """None where too much of what they would see is not theirs, or there is only one."""
        slots, stops = [chunk.slot for chunk in chunks], [chunk.stop for chunk in chunks]
        first, num_slots, longest = min(slots), max(slots) - min(slots) + 1, max(stops)
        if len(chunks) == 1 or num_slots * longest > _MAX_PADDING * sum(stops):
            return None
        places = torch.tensor(slots) - first
        lengths = torch.ones(num_slots, dtype=torch.long)
        lengths[places] = torch.tensor(stops)
        hidden = torch.arange(longest) >= lengths[:, None]
        visible = torch.zeros(num_slots, longest).masked_fill_(hidden, float("-inf"))
        return cls(places, slice(first, first + num_slots), longest, visible[:, None, None])

    def mix(self, part: LayerSlice, queries: Tensor, stored: Stored, scale: float) -> Tensor:
        """Of queries [rows, num_kv, heads, head_dim], in the order of the rows: the same shape."""
        asked = queries.new_zeros(len(self.visible), *queries.shape[1:])
        asked[self.places] = queries
        keys, values = (kept[self.slots, part.kv_heads, : self.num_positions] for kept in stored)
        # For one query a row and a head, plain products are faster than the fused attention.
        scores = torch.matmul(asked * scale, keys.transpose(2, 3)) + self.visible
        return torch.matmul(scores.softmax(dim=-1), values)[self.places]
