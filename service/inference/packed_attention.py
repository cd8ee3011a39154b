"""Attention over packed rows, each under its own head mask, in two ways with equal results.

SlicedAttention   projections over the rows of one head mask at a time, with the weights of its active heads;
                  or over all rows with all weights, the output gated.
WholeAttention    the latter for a decode step. For many head masks, which else would spend its time on
                  reading so many copies of the weights.

Scores and mixing of a prefill are computed row by row, over the row's own keys and values, of which not one
is padding; those of rows that ask at one position in `service.inference.single_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from service.inference.chunk import Chunk
from service.inference.head_slices import LayerSlice
from service.inference.single_rows import SingleRows, Stored


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
        self._singles = [
            SingleRows(group.chunks, scale) if all(chunk.length == 1 for chunk in group.chunks) else None
            for group in groups
        ]
        self._gate = gate
        self._rotations = rotations
        self._head_dim = head_dim
        self._scale = scale

    def __call__(self, number: int, normed: Tensor, stored: Stored) -> Tensor:
        """What layer `number` adds to [total, hidden], all positions asking."""
        parts = []
        for group, single in zip(self._groups, self._singles, strict=True):
            part, rows = group.slices[number], normed[group.start : group.stop]
            if not part.num_q:
                parts.append(_without_heads(rows, part))
                continue
            heads = F.linear(rows, part.qkv, part.qkv_bias).view(len(rows), -1, self._head_dim)
            num_turned = part.num_q + part.num_kv
            turned = _rotate(heads[:, :num_turned], self._rotations[group.start : group.stop])
            queries, keys, values = turned[:, : part.num_q], turned[:, part.num_q :], heads[:, num_turned:]
            if single is not None:
                single.store(part, keys, values, stored)
                mixed = single.mix(part, queries, stored).flatten(1)
            else:
                _store(part, group.chunks, keys, values, stored)
                mixed = self._mix(part, group.chunks, [c.length for c in group.chunks], queries, stored)
            if self._gate is not None:
                mixed = mixed * self._gate[number]
            parts.append(F.linear(mixed, part.out, part.out_bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def of_outputs(self, number: int, normed: Tensor, stored: Stored) -> Tensor:
        """The same where only the outputs ask: [sum of num_outputs, hidden]."""
        parts = []
        for group in self._groups:
            part, rows = group.slices[number], normed[group.start : group.stop]
            asking = _asking(group)
            if not part.num_q:
                parts.append(_without_heads(rows[asking], part))
                continue
            rotations, split = self._rotations[group.start : group.stop], part.num_q * self._head_dim
            bias_q, bias_kv = (None, None) if part.qkv_bias is None else part.qkv_bias.tensor_split([split])
            heads = F.linear(rows, part.qkv[split:], bias_kv).view(len(rows), -1, self._head_dim)
            keys, values = _rotate(heads[:, : part.num_kv], rotations), heads[:, part.num_kv :]
            _store(part, group.chunks, keys, values, stored)
            if not len(asking):
                parts.append(rows[asking])
                continue
            queries = F.linear(rows[asking], part.qkv[:split], bias_q).view(len(asking), -1, self._head_dim)
            queries = _rotate(queries, rotations[asking])
            counts = [chunk.num_outputs for chunk in group.chunks]
            if max(counts) == 1:
                chunks = [chunk for chunk in group.chunks if chunk.num_outputs]
                mixed = SingleRows(chunks, self._scale).mix(part, queries, stored).flatten(1)
            else:
                mixed = self._mix(part, group.chunks, counts, queries, stored)
            if self._gate is not None:
                mixed = mixed * self._gate[number, asking]
            parts.append(F.linear(mixed, part.out, part.out_bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _mix(
        self, part: LayerSlice, chunks: Sequence[Chunk], counts: list[int], queries: Tensor, stored: Stored
    ) -> Tensor:
        """Of the last `counts` positions of each chunk: [sum of counts, num_q * head_dim]."""
        mixed, first = [], 0
        for chunk, count in zip(chunks, counts, strict=True):
            if count:
                keys, values = (kept[chunk.slot, part.kv_heads, : chunk.stop] for kept in stored)
                mixed.append(self._mix_long(part, chunk, queries[first : first + count], keys, values))
            first += count
        return torch.cat(mixed).flatten(1)

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
        self._whole = whole
        self._gate = gate.view(*gate.shape[:2], whole[0].num_q, -1)
        self._rotations = rotations
        self._head_dim = head_dim
        self._rows = SingleRows(chunks, scale)

    def __call__(self, number: int, normed: Tensor, stored: Stored) -> Tensor:
        """What layer `number` adds to [len(chunks), hidden]."""
        part = self._whole[number]
        heads = F.linear(normed, part.qkv, part.qkv_bias).view(len(normed), -1, self._head_dim)
        num_turned = part.num_q + part.num_kv
        turned = _rotate(heads[:, :num_turned], self._rotations)
        self._rows.store(part, turned[:, part.num_q :], heads[:, num_turned:], stored)
        mixed = self._rows.mix(part, turned[:, : part.num_q], stored)
        return F.linear((mixed * self._gate[number]).flatten(1), part.out, part.out_bias)

    of_outputs = __call__


def _without_heads(rows: Tensor, part: LayerSlice) -> Tensor:
    """What a layer without active head adds."""
    nothing = torch.zeros_like(rows)
    return nothing if part.out_bias is None else nothing + part.out_bias


def _rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    """Rotary embedding of [positions, heads, head_dim], in pairs."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2)


def _store(part: LayerSlice, chunks: Sequence[Chunk], keys: Tensor, values: Tensor, stored: Stored) -> None:
    """Write keys and values [positions, num_kv, head_dim] of all chunks into their slots."""
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
