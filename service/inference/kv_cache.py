"""Keys and values of the running rows: one slot a row, one position a token.

Position p of a slot holds token p of the sequence in that slot, whatever its neighbours' lengths. What a
slot holds beyond its sequence is left over from earlier ones; attention masks hide it. It must be finite,
though, as 0 · NaN is NaN: a slot in which the model failed is cleared.

`prefill` and `decode` give the `past_key_values` of one forward call. Transformers' decoders, handed
positions and attention masks, ask nothing of it but `update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_TOKENS = 128


class KvCache:
    """Per layer two tensors [num_slots, num_kv_heads, num_positions, head_dim], of the decoder's dtype.

    They take the shape of what the decoder hands over, and grow with the demand (slots to the next power of
    two, positions to the next block) up to `max_slots` and `max_positions`.
    """

    def __init__(self, num_layers: int, max_slots: int, max_positions: int) -> None:
        self._max_slots = max_slots
        self._max_positions = max_positions
        self._num_slots = 0
        self._num_positions = 0
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    @property
    def num_bytes(self) -> int:
        """Memory held now."""
        return sum(part.nbytes for layer in self._layers if layer is not None for part in layer)

    def reserve(self, num_slots: int, num_positions: int) -> None:
        """Make room, from the next forward call on, for slots below `num_slots` of `num_positions` each.

        Raises:
            ValueError: beyond the limits.
        """
        if num_slots > self._max_slots or num_positions > self._max_positions:
            raise ValueError(
                f"{num_slots} slots of {num_positions} positions do not fit into a cache of "
                f"{self._max_slots} of {self._max_positions}"
            )
        if num_slots > self._num_slots:
            self._num_slots = min(1 << (num_slots - 1).bit_length(), self._max_slots)
        if num_positions > self._num_positions:
            num_blocks = -(-num_positions // BLOCK_TOKENS)
            self._num_positions = min(num_blocks * BLOCK_TOKENS, self._max_positions)

    def release(self) -> None:
        """Give all memory back; no slot may be in use."""
        self._num_slots = self._num_positions = 0
        self._layers = [None] * len(self._layers)

    def settle(self) -> None:
        """Reserve no more than what is held; after a call that could not allocate what was reserved."""
        held = [layer[0].shape for layer in self._layers if layer is not None]
        self._num_slots = min((shape[0] for shape in held), default=0)
        self._num_positions = min((shape[2] for shape in held), default=0)

    def clear(self, slot: int) -> None:
        """Overwrite one slot with zeros."""
        for layer in self._layers:
            for part in layer or ():
                part[slot : slot + 1].zero_()

    def move(self, slot: int, sources: Sequence[int], start: int) -> None:
        """Copy the positions `sources` of a slot to `start` and those behind it."""
        for layer in self._layers:
            for part in layer or ():
                part[slot, :, start : start + len(sources)] = part[slot, :, list(sources)]

    def prefill(self, slots: Sequence[int], device: torch.device) -> Prefill:
        """For a call that starts the sequences in `slots`, in the order of its rows."""
        return Prefill(self, torch.tensor(slots, device=device))

    def decode(self, slots: Tensor, rows: slice | Tensor, positions: Tensor, num_positions: int) -> Decode:
        """For a call that adds one token to each sequence of a batch.

        slots: int [batch], ascending; rows: `select_rows` of them. positions: int [batch], where each row's
        token goes. num_positions: the longest of the rows, this token included.
        """
        return Decode(self, slots, rows, positions, num_positions)

    def layer(self, layer_idx: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, grown to what is reserved; made for keys such as `like`."""
        layer = self._layers[layer_idx]
        if layer is None:
            layer = (self._empty(like), self._empty(like))
        elif layer[0].shape[0] < self._num_slots or layer[0].shape[2] < self._num_positions:
            layer = (self._grown(layer[0]), self._grown(layer[1]))
        self._layers[layer_idx] = layer
        return layer

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self._num_slots, like.shape[1], self._num_positions, like.shape[3])

    def _grown(self, old: Tensor) -> Tensor:
        new = self._empty(old)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


@dataclass(frozen=True)
class Prefill:
    """`past_key_values` of a prefill: the rows see themselves, and their slots are filled from position 0."""

    cache: KvCache
    slots: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [batch, num_kv_heads, longest prompt, head_dim], right padding included, and return it."""
        keys, values = self.cache.layer(layer_idx, key_states)
        num_positions = key_states.shape[2]
        slots = self.slots.to(keys.device)  # a layer may be on another device
        keys[slots, :, :num_positions] = key_states
        values[slots, :, :num_positions] = value_states
        return key_states, value_states


@dataclass(frozen=True)
class Decode:
    """`past_key_values` of a decode step.

    slots: int [batch]; rows: the same, as a slice where they are adjacent, so that no copy is made.
    """

    cache: KvCache
    slots: Tensor
    rows: slice | Tensor
    positions: Tensor
    num_positions: int

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [batch, num_kv_heads, 1, head_dim]; return all up to num_positions, in the place of 1."""
        keys, values = self.cache.layer(layer_idx, key_states)
        slots, positions = self.slots.to(keys.device), self.positions.to(keys.device)
        rows = self.rows if isinstance(self.rows, slice) else slots
        keys[slots, :, positions] = key_states[:, :, 0]
        values[slots, :, positions] = value_states[:, :, 0]
        return keys[rows, :, : self.num_positions], values[rows, :, : self.num_positions]


def select_rows(slots: Sequence[int], index: Tensor) -> slice | Tensor:
    """What selects `slots` (ascending) from a tensor: a slice, which copies nothing, if they are adjacent."""
    adjacent = slots[-1] - slots[0] == len(slots) - 1
    return slice(slots[0], slots[-1] + 1) if adjacent else index
