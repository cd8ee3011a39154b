"""The forward pass of any decoder on any device: transformers' own, over a padded batch under a gate.

A prefill is padded on the right, where causality hides the padding from the row; a decode step looks at every
position up to the longest row's, and its attention mask hides what is not the row's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from service.inference.chunk import Chunk
from service.inference.kv_cache import Decode, KvCache, Prefill, select_rows

_FULL, _SLIDING = "full_attention", "sliding_attention"


class PaddedPass:
    """`ForwardPass` over a family's decoder; a prefill takes whole prompts.

    Raises:
        ValueError: the decoder has layers that this attention mask does not fit.
    """

    def __init__(self, family: ModelFamily, cache: KvCache, max_slots: int) -> None:
        self._family = family
        self._cache = cache
        identity = family.identity
        self._shape = (identity.num_layers, identity.num_heads)
        self._gates = torch.ones(
            identity.num_layers, max_slots, identity.num_heads, device=family.device, dtype=family.dtype
        )
        # As of transformers 5.24 what was `past_key_values` is called `cache`, model by model.
        parameters = inspect.signature(family.decoder.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._layer_types, self._window = _attention_layers(family.decoder.config)
        self.takes_parts = False
        self.takes_trees = self._window is None

    def prepare(self, head_masks: Sequence[HeadMask]) -> None:
        """See `ForwardPass`. A gate is all that a head mask needs here, and rows bring their own."""

    def prefill(self, inputs: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
        """See `ForwardPass`."""
        device, slots = self._family.device, [chunk.slot for chunk in chunks]
        gate = gate_tensor(
            [chunk.head_mask for chunk in chunks], *self._shape, device=device, dtype=self._family.dtype
        )
        self._gates[:, slots] = gate
        padded = pad_sequence(list(inputs), batch_first=True)
        width = padded.shape[1]
        positions = torch.arange(width).repeat(len(chunks), 1)
        visible = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(chunks), 1, 1)
        for row, chunk in enumerate(chunks):
            if chunk.parents:
                positions[row, : chunk.length] = chunk.positions
                visible[row, : chunk.length, : chunk.length] = chunk.visible
        hidden = self._forward(
            positions.to(device),
            visible[:, None].to(device),
            gate,
            self._cache.prefill(slots, device),
            inputs_embeds=padded,
        )
        rows = [row for row, chunk in enumerate(chunks) for _ in range(chunk.num_outputs)]
        columns = [
            column for chunk in chunks for column in range(chunk.length - chunk.num_outputs, chunk.length)
        ]
        return hidden[tuple(torch.tensor([rows, columns], device=device))]

    def decode(self, input_ids: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """See `ForwardPass`."""
        slots = [chunk.slot for chunk in chunks]
        latest, positions, index = torch.tensor(
            [input_ids, [chunk.start for chunk in chunks], slots], device=self._family.device
        )
        num_keys = max(chunk.stop for chunk in chunks)
        return self.decode_rows(latest, positions, index, select_rows(slots, index), num_keys)

    def decode_rows(
        self, latest: Tensor, positions: Tensor, slots: Tensor, rows: slice | Tensor, num_keys: int
    ) -> Tensor:
        """The part of `decode` that is the device's alone: it copies nothing from the host or to it.

        latest: int [batch], the tokens that are added. positions, slots, rows and num_keys: see
        `KvCache.decode`. Returns the last hidden states [batch, hidden].
        """
        cache = self._cache.decode(slots, rows, positions, num_keys)
        positions = positions[:, None]
        visible = torch.arange(num_keys, device=positions.device) <= positions[:, None, :, None]
        hidden = self._forward(positions, visible, self._gates[:, rows], cache, input_ids=latest[:, None])
        return hidden[:, -1]

    def _forward(
        self,
        positions: Tensor,
        visible: Tensor,
        gate: Tensor,
        cache: Prefill | Decode,
        **inputs: Tensor,
    ) -> Tensor:
        """Last hidden states [batch, num_queries, hidden].

        positions: int [batch, num_queries]. visible: bool [batch, 1, num_queries, num_keys], the keys that a
        query sees but for a sliding window.
        """
        output = self._family.decoder(
            **inputs,
            attention_mask=self._attention_mask(positions, visible),
            position_ids=positions,
            use_cache=True,
            head_gate=gate,
            **{self._cache_argument: cache},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _attention_mask(self, positions: Tensor, visible: Tensor) -> Tensor | dict[str, Tensor]:
        """`visible`, as far as the window of each layer goes.

        A decoder that mixes full and sliding layers takes one a type.
        """
        if self._window is None:
            return visible
        keys = torch.arange(visible.shape[-1], device=positions.device)
        near = visible & (keys > positions[:, None, :, None] - self._window)
        return {_FULL: visible, _SLIDING: near} if self._layer_types else near


def _attention_layers(config: Any) -> tuple[set[str], int | None]:
    """Types of layers that a decoder tells apart (none if its layers are alike), and its sliding window.

    Raises:
        ValueError: a type of layer that a decode step cannot mask.
    """
    layer_types = set(getattr(config, "layer_types", None) or ())
    if unknown := layer_types - {_FULL, _SLIDING}:
        raise ValueError(f"the decoder has layers of types {sorted(unknown)}, which are not supported")
    if layer_types == {_FULL}:
        return set(), None
    return layer_types, getattr(config, "sliding_window", None)
