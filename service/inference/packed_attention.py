"""Attention over packed rows, each under its own head mask, in two ways with equal results.

SlicedAttention   projections over the rows of one head mask at a time, with the weights of its active heads;
                  or over all rows with all weights, the output gated.
WholeAttention    the latter for a decode step. For many head masks, which else would spend its time on
                  reading so many copies of the weights.

Scores and mixing are computed row by row, over the row's own keys and values, of which not one is padding.
The rows of a decode step go together where their slots and lengths are so alike that little is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from service.inference.chunk import Chunk
from service.inference.head_slices import LayerSlice

# How many keys the one call for all rows of a decode step may see for each that is wanted.
_MAX_PADDING = 2

# Keys and values of one layer, each [num_slots, num_kv_heads, num_positions, head_dim].
Stored = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Group:
    """The chunks of one head mask; start and stop: their positions among all of a pass."""

    chunks: Sequence[Chunk]
    slices: Sequence[LayerSlice]
    start: int
    stop: int


class SlicedAttention:
    """For one pass; rotations: complex [total, 1, head_dim / 2].

    gate: for the output of a single group, [num_layers, total, num_q * head_dim].
    """

    def __init__(
        self,
        groups: Sequence[Group],
        rotations: Tensor,
        head_dim: int,
        scale: float,
        gate: Tensor | None = None,
    ) -> None:
        self._groups = groups
        self._joint = [_joint_rows(group.chunks) for group in groups]
        self._gate = gate
        self._rotations = rotations
        self._head_dim = head_dim
        self._scale = scale

    def __call__(self, number: int, normed: Tensor, stored: Stored) -> Tensor:
        """What layer `number` adds to [total, hidden], all positions asking."""
        parts = []
        for group, joint in zip(self._groups, self._joint, strict=True):
            part, rows = group.slices[number], normed[group.start : group.stop]
            if not part.num_q:
                parts.append(_without_heads(rows, part))
                continue
            heads = F.linear(rows, part.qkv, part.qkv_bias).view(len(rows), -1, self._head_dim)
            num_turned = part.num_q + part.num_kv
            turned = _rotate(heads[:, :num_turned], self._rotations[group.start : group.stop])
            _store(stored, group.chunks, part, turned[:, part.num_q :], heads[:, num_turned:])
            counts = [chunk.length for chunk in group.chunks]
            mixed = self._mix(part, group.chunks, counts, turned[:, : part.num_q], stored, joint)
            if self._gate is not None:
                mixed = mixed * self._gate[number]
            parts.append(F.linear(mixed, part.out, part.out_bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def of_outputs(self, number: int, normed: Tensor, stored: Stored) -> Tensor:
        """The same where only the outputs ask: [sum of num_outputs, hidden]."""
        parts = []
        for group, joint in zip(self._groups, self._joint, strict=True):
            part, rows = group.slices[number], normed[group.start : group.stop]
            asking = _asking(group)
            if not part.num_q:
                parts.append(_without_heads(rows[asking], part))
                continue
            rotations, split = self._rotations[group.start : group.stop], part.num_q * self._head_dim
            bias_q, bias_kv = (None, None) if part.qkv_bias is None else part.qkv_bias.tensor_split([split])
            heads = F.linear(rows, part.qkv[split:], bias_kv).view(len(rows), -1, self._head_dim)
            _store(
                stored,
                group.chunks,
                part,
                _rotate(heads[:, : part.num_kv], rotations),
                heads[:, part.num_kv :],
            )
            if not len(asking):
                parts.append(rows[asking])
                continue
            queries = F.linear(rows[asking], part.qkv[:split], bias_q).view(len(asking), -1, self._head_dim)
            counts = [chunk.num_outputs for chunk in group.chunks]
            mixed = self._mix(part, group.chunks, counts, _rotate(queries, rotations[asking]), stored, joint)
            if self._gate is not None:
                mixed = mixed * self._gate[number, asking]
            parts.append(F.linear(mixed, part.out, part.out_bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _mix(
        self,
        part: LayerSlice,
        chunks: Sequence[Chunk],
        counts: list[int],
        queries: Tensor,
        stored: Stored,
        joint: JointRows | None,
    ) -> Tensor:
        """Of the last `counts` positions of each chunk: [sum of counts, num_q * head_dim]."""
        if max(counts) == 1:
            asking = [chunk for chunk, count in zip(chunks, counts, strict=True) if count]
            return self._mix_single(part, asking, queries, stored, joint)
        mixed, first = [], 0
        for chunk, count in zip(chunks, counts, strict=True):
            if count:
                keys, values = (kept[chunk.slot, part.kv_heads, : chunk.stop] for kept in stored)
                mixed.append(self._mix_long(part, chunk, queries[first : first + count], keys, values))
            first += count
        return torch.cat(mixed).flatten(1)

    def _mix_single(
        self,
        part: LayerSlice,
        chunks: Sequence[Chunk],
        queries: Tensor,
        stored: Stored,
        joint: JointRows | None,
    ) -> Tensor:
        """Of the last position of each chunk: [len(chunks), num_q * head_dim]."""
        # The heads that share keys ask as so many positions would: keys and values are not copied.
        shared = part.num_q > part.num_kv
        asked = queries[:, part.spread] if shared else queries
        asked = asked.reshape(len(chunks), part.num_kv, -1, self._head_dim)
        if joint is not None:
            mixed = joint.mix(asked, stored, self._scale, part.kv_heads)
        else:
            rows = [self._mix_row(part, asked[n : n + 1], chunk, stored) for n, chunk in enumerate(chunks)]
            mixed = torch.cat(rows)
        heads = mixed.flatten(1, 2)
        return (heads[:, part.gather] if shared else heads).flatten(1)

    def _mix_row(self, part: LayerSlice, asked: Tensor, chunk: Chunk, stored: Stored) -> Tensor:
        """Of the last position of one chunk: [1, num_kv, heads, head_dim], as `asked`."""
        keys, values = (kept[chunk.slot, part.kv_heads, : chunk.stop][None] for kept in stored)
        return F.scaled_dot_product_attention(asked, keys, values, scale=self._scale)

    def _mix_long(
        self, part: LayerSlice, chunk: Chunk, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Of the last positions of a chunk, as many as there are queries: [len(queries), num_q, head_dim]."""
        count = len(queries)
        causal = count == chunk.stop and not chunk.parents
        mixed = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[part.kv_of_q][None],
            values[part.kv_of_q][None],
            attn_mask=None if causal else chunk.visible[-count:],
            is_causal=causal,
            scale=self._scale,
        )
        return mixed[0].transpose(0, 1)


class WholeAttention:
    """For one decode step, all chunks being one position.

    whole: every layer with all its heads, none pruned.
    gate: [num_layers, len(chunks), num_q * head_dim], or 1 in place of head_dim.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        whole: Sequence[LayerSlice],
        gate: Tensor,
        rotations: Tensor,
        head_dim: int,
        scale: float,
    ) -> None:
        self._chunks = chunks
        self._whole = whole
        self._gate = gate.view(*gate.shape[:2], whole[0].num_q, -1)
        self._rotations = rotations
        self._head_dim = head_dim
        self._scale = scale
        self._slots, self._starts = torch.tensor([[chunk.slot, chunk.start] for chunk in chunks]).T
        self._joint = JointRows.of(chunks)

    def __call__(self, number: int, normed: Tensor, stored: Stored) -> Tensor:
        """What layer `number` adds to [len(chunks), hidden]."""
        part = self._whole[number]
        heads = F.linear(normed, part.qkv, part.qkv_bias).view(len(normed), -1, self._head_dim)
        num_turned = part.num_q + part.num_kv
        turned = _rotate(heads[:, :num_turned], self._rotations)
        stored[0][self._slots, :, self._starts] = turned[:, part.num_q :]
        stored[1][self._slots, :, self._starts] = heads[:, num_turned:]
        queries = turned[:, : part.num_q].view(len(normed), part.num_kv, -1, self._head_dim)
        if self._joint is not None:
            mixed = self._joint.mix(queries, stored, self._scale)
        else:
            mixed = torch.cat([self._mix(queries, row, stored) for row in range(len(queries))])
        gated = mixed.flatten(1, 2) * self._gate[number]
        return F.linear(gated.flatten(1), part.out, part.out_bias)

    def _mix(self, queries: Tensor, row: int, stored: Stored) -> Tensor:
        """[1, num_kv, groups, head_dim] of one row."""
        slot, stop = self._chunks[row].slot, self._chunks[row].stop
        keys, values = (kept[slot : slot + 1, :, :stop] for kept in stored)
        return F.scaled_dot_product_attention(queries[row : row + 1], keys, values, scale=self._scale)

    of_outputs = __call__


@dataclass(frozen=True)
class JointRows:
    """Rows of a decode step that are mixed in one call, over the slots from the first to the last of theirs.

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

    def mix(
        self, queries: Tensor, stored: Stored, scale: float, kv_heads: slice | Tensor = slice(None)
    ) -> Tensor:
        """Of queries [rows, num_kv, groups, head_dim], in the order of the rows: the same shape.

        kv_heads: which of the stored key-value heads these are.
        """
        asked = queries.new_zeros(len(self.visible), *queries.shape[1:])
        asked[self.places] = queries
        keys, values = (kept[self.slots, kv_heads, : self.num_positions] for kept in stored)
        # For one query a row and a head, plain products are faster than the fused attention.
        scores = torch.matmul(asked * scale, keys.transpose(2, 3)) + self.visible
        return torch.matmul(scores.softmax(dim=-1), values)[self.places]


def _joint_rows(chunks: Sequence[Chunk]) -> JointRows | None:
    """For chunks that each ask at one position."""
    return JointRows.of(chunks) if all(chunk.num_outputs == 1 for chunk in chunks) else None


def _without_heads(rows: Tensor, part: LayerSlice) -> Tensor:
    """What a layer without active head adds."""
    nothing = torch.zeros_like(rows)
    return nothing if part.out_bias is None else nothing + part.out_bias


def _rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    """Rotary embedding of [positions, heads, head_dim], in pairs."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2)


def _store(stored: Stored, chunks: Sequence[Chunk], part: LayerSlice, keys: Tensor, values: Tensor) -> None:
    """Write keys and values [positions, num_kv, head_dim] of all chunks into their slots."""
    if all(chunk.length == 1 for chunk in chunks):
        slots, starts = torch.tensor([[chunk.slot, chunk.start] for chunk in chunks]).T
        of_heads = torch.arange(stored[0].shape[1])[part.kv_heads]
        for kept, new in zip(stored, (keys, values), strict=True):
            kept[slots[:, None], of_heads, starts[:, None]] = new
        return
    first = 0
    for chunk in chunks:
        last = first + chunk.length
        for kept, new in zip(stored, (keys, values), strict=True):
            kept[chunk.slot, part.kv_heads, chunk.start : chunk.stop] = new[first:last].transpose(0, 1)
        first = last


def _asking(group: Group) -> Tensor:
    """The outputs among the positions of a group, int [sum of num_outputs]."""
    places, end = [], 0
    for chunk in group.chunks:
        end += chunk.length
        places.append(torch.arange(end - chunk.num_outputs, end))
    return torch.cat(places)
