"""The forward pass on a CPU: rows one behind another, without padding, and without their silenced heads.

All rows stand in one tensor [total, hidden], those of one head mask together. Norms and feed-forward run over
all of them at once, attention as `packed_attention` has it. The last layer computes keys and values for every
position, but all else only where logits are asked for. A decoder whose heads are copies in groups
(`lalm.copied_heads`) has few enough left for all rows to share their weights: there the output is gated.

The modules of transformers' decoder do what is not attention, so that this is the same model; `packed_check`
says which decoders it is written for, and compares the two on random input.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn

from lalm.copied_heads import heads_are_copies
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from lalm.pruned_attention import head_layouts
from service.inference.chunk import Chunk
from service.inference.head_slices import HeadSlices
from service.inference.kv_cache import KvCache
from service.inference.packed_attention import Group, SlicedAttention, WholeAttention

# Reading a weight from memory takes about as long as multiplying it with so many rows.
_READ_ROWS = 20
_MAX_GATES = 256  # kept at most, of some kilobytes each


class PackedPass:
    """`ForwardPass` over a decoder that fits."""

    def __init__(self, decoder: Any, cache: KvCache, max_positions: int) -> None:
        self._decoder = PackedDecoder(decoder, cache, max_positions)
        self.takes_parts = self.takes_trees = True
        self._embed_tokens: nn.Module = decoder.get_input_embeddings()

    def prepare(self, head_masks: Sequence[HeadMask]) -> None:
        """See `ForwardPass`."""
        self._decoder.prepare(head_masks)

    def prefill(self, inputs: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
        """See `ForwardPass`."""
        order = _by_head_mask(chunks)
        ordered = [chunks[place] for place in order]
        outputs = self._decoder(torch.cat([inputs[place] for place in order]), ordered)
        parts = torch.split(outputs, [chunk.num_outputs for chunk in ordered])
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat([parts[place] for place in back])

    def decode(self, input_ids: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """See `ForwardPass`."""
        return self.prefill(self._embed_tokens(torch.tensor(input_ids)).split(1), chunks)


class PackedDecoder:
    """Runs a decoder that fits over rows whose keys and values are in `cache`."""

    def __init__(self, decoder: Any, cache: KvCache, max_positions: int) -> None:
        config = decoder.config
        self._layers = list(decoder.layers)
        self._norm: nn.Module = decoder.norm
        self._shape = (len(self._layers), config.num_attention_heads)
        self._cache = cache
        attentions, layouts = [layer.self_attn for layer in self._layers], head_layouts(decoder)
        with_heads = [module for module, layout in zip(attentions, layouts, strict=True) if layout.heads]
        self._head_dim: int = with_heads[0].head_dim
        self._scale: float = with_heads[0].scaling
        self._likes = [torch.empty(1, len(layout.kv_heads), 0, self._head_dim) for layout in layouts]
        self._slices = HeadSlices(attentions, layouts, self._head_dim)
        copied = all(heads_are_copies(attention) for attention in attentions)
        self._gates = ChannelGates(attentions[0], self._shape) if copied else None
        probe = torch.zeros(1, 1, config.hidden_size)
        cos, sin = decoder.rotary_emb(probe, torch.arange(max_positions)[None])
        half = self._head_dim // 2
        self._rotations = torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())

    def __call__(self, inputs: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """Last hidden states at the outputs of each chunk, in order: [sum of num_outputs, hidden].

        inputs: float32 [sum of lengths, hidden], the chunks one behind another; those of one head mask should
        be adjacent, or their weights are read more than once.
        """
        hidden, outputs = inputs, _outputs(chunks)
        attention = self._attention(chunks)
        for number, layer in enumerate(self._layers):
            normed = layer.input_layernorm(hidden)
            stored = self._cache.layer(number, self._likes[number])
            if outputs is not None and number == len(self._layers) - 1:
                hidden = hidden[outputs] + attention.of_outputs(number, normed, stored)
            else:
                hidden = hidden + attention(number, normed, stored)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        last: Tensor = self._norm(hidden)
        return last

    def prepare(self, head_masks: Sequence[HeadMask]) -> None:
        """Copy the weights that these head masks leave."""
        for head_mask in (None, *(() if self._gates else head_masks)):
            self._slices.of(head_mask)

    def _attention(self, chunks: Sequence[Chunk]) -> SlicedAttention | WholeAttention:
        """What is faster for these chunks; a pruned decoder, which serves one head mask, has slices only."""
        rotations = self._rotations[_positions(chunks)][:, None]
        single = all(chunk.length == chunk.num_outputs == 1 for chunk in chunks)
        if self._gates is not None:
            whole, gate = self._slices.of(None), self._gates.of(chunks)
            if single:
                return WholeAttention(chunks, whole, gate, rotations, self._head_dim, self._scale)
            lengths = torch.tensor([chunk.length for chunk in chunks])
            gate = gate.repeat_interleave(lengths, dim=1)
            everything = Group(chunks, whole, 0, len(rotations))
            return SlicedAttention([everything], rotations, self._head_dim, self._scale, gate)
        groups, start = [], 0
        for head_mask, members in groupby(chunks, key=lambda chunk: chunk.head_mask):
            of_mask = list(members)
            stop = start + sum(chunk.length for chunk in of_mask)
            groups.append(Group(of_mask, self._slices.of(head_mask), start, stop))
            start = stop
        if single and len(groups) > 1 and self._slices.whole_has_every_head:
            whole = self._slices.of(None)
            num_weights = sum(part.num_bytes for part in whole)
            shares = [sum(part.num_bytes for part in group.slices) / num_weights for group in groups]
            sliced_cost = sum(
                share * (_READ_ROWS + len(group.chunks)) for share, group in zip(shares, groups, strict=True)
            )
            if sliced_cost > _READ_ROWS + len(chunks):
                gate = gate_tensor([chunk.head_mask for chunk in chunks], *self._shape)
                return WholeAttention(chunks, whole, gate, rotations, self._head_dim, self._scale)
        return SlicedAttention(groups, rotations, self._head_dim, self._scale)


class ChannelGates:
    """Gates of merged heads: the heads of a group are one, and each has channels of its own in it.

    attention: one of the layers, whose heads are copies (`lalm.copied_heads`). shape: num_layers, num_heads.
    """

    def __init__(self, attention: Any, shape: tuple[int, int]) -> None:
        self._num_channels: int = attention.head_dim // attention.num_key_value_groups
        self._shape = shape
        self._by_mask: dict[HeadMask | None, Tensor] = {}

    def of(self, chunks: Sequence[Chunk]) -> Tensor:
        """[num_layers, len(chunks), groups * head_dim].

        Raises:
            ValueError: a head mask of another shape.
        """
        return torch.stack([self._of_mask(chunk.head_mask) for chunk in chunks], dim=1)

    def _of_mask(self, head_mask: HeadMask | None) -> Tensor:
        gate = self._by_mask.get(head_mask)
        if gate is None:
            if len(self._by_mask) == _MAX_GATES:
                self._by_mask.clear()
            gate = gate_tensor([head_mask], *self._shape)[:, 0].repeat_interleave(self._num_channels, dim=-1)
            self._by_mask[head_mask] = gate
        return gate


def _by_head_mask(chunks: Sequence[Chunk]) -> list[int]:
    """The places of `chunks` in an order in which those of one head mask are adjacent."""
    places: dict[HeadMask | None, list[int]] = {}
    for place, chunk in enumerate(chunks):
        places.setdefault(chunk.head_mask, []).append(place)
    return [place for of_mask in places.values() for place in of_mask]


def _positions(chunks: Sequence[Chunk]) -> Tensor:
    """Of every position of a pass, where it stands in its sequence."""
    if all(chunk.length == 1 for chunk in chunks):
        return torch.tensor([chunk.start for chunk in chunks])
    return torch.cat([chunk.positions for chunk in chunks])


def _outputs(chunks: Sequence[Chunk]) -> Tensor | None:
    """Where the outputs stand among all positions, int [sum of num_outputs]; None: everywhere."""
    if all(chunk.num_outputs == chunk.length for chunk in chunks):
        return None
    ends = accumulate(chunk.length for chunk in chunks)
    return torch.cat(
        [torch.arange(end - chunk.num_outputs, end) for chunk, end in zip(chunks, ends, strict=True)]
    )
