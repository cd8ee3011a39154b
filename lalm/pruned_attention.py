"""Attention of a decoder whose silenced heads are gone: any number of heads a layer, none too.

`shrink` takes heads out of an attention module and leaves its `HeadLayout` on it, where the gated attention
(`lalm.head_gate`) finds it; `head_layouts` hands it to whoever computes attention otherwise. Kept query heads
stand in their old order. A key-value head stays while one query head of its group stays, so that groups are
of unequal size, which no attention kernel knows:

- a decode step pads the query (one position) to the largest group; keys and values are not copied;
- a prefill gives each query head its own keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Attention = Callable[..., tuple[Tensor, Any]]


class HeadLayout:
    """Which heads of one layer are left.

    kept_heads: one character a query head of the unpruned layer, 1 = kept.
    num_kv_heads: key-value heads of the unpruned layer; each serves num_heads / num_kv_heads query heads.

    kept: bool [num_heads]. heads, kv_heads: those that are left, by their ascending numbers in that layer.
    kv_of_head: the place in `kv_heads` of what each of `heads` reads.
    """

    def __init__(self, kept_heads: str, num_kv_heads: int) -> None:
        group_size = len(kept_heads) // num_kv_heads
        self.num_heads, self.num_kv_heads = len(kept_heads), num_kv_heads
        self.kept = np.array([kept == "1" for kept in kept_heads])
        self.heads: list[int] = np.flatnonzero(self.kept).tolist()
        self.kv_heads = sorted({head // group_size for head in self.heads})
        kv_of_head = [self.kv_heads.index(head // group_size) for head in self.heads]
        sizes = [kv_of_head.count(kv) for kv in range(len(self.kv_heads))]
        self._largest = max(sizes, default=0)
        self._even = min(sizes, default=0) == self._largest
        ranks = [position - kv_of_head.index(kv) for position, kv in enumerate(kv_of_head)]
        self._cells = [kv * self._largest + rank for kv, rank in zip(kv_of_head, ranks, strict=True)]
        self.kv_of_head = kv_of_head
        self._indices: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def group_size(self) -> int:
        """Query heads a key-value head serves in a call of the kernel; the largest group's."""
        return self._largest

    def attend(
        self,
        attention: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """`attention` over the heads that are left.

        query: [batch, len(heads), seq, head_dim]; key, value: [batch, len(kv_heads), keys, head_dim].
        Returns its output [batch, seq, len(heads), head_dim], and what else it returned.
        """
        if self._even:
            return attention(module, query, key, value, *args, **kwargs)
        if query.shape[2] > 1:
            of_head = self._index("kv", query.device)
            own_keys = SimpleNamespace(num_key_value_groups=1, is_causal=getattr(module, "is_causal", True))
            return attention(own_keys, query, key[:, of_head], value[:, of_head], *args, **kwargs)
        cells = self._index("cells", query.device)
        padded = query.new_zeros(query.shape[0], len(self.kv_heads) * self._largest, *query.shape[2:])
        padded[:, cells] = query
        output, rest = attention(module, padded, key, value, *args, **kwargs)
        return output[:, :, cells], rest

    def gate(self, gate: Tensor) -> Tensor:
        """The gate of the heads that are left, of one of all heads [batch, num_heads]."""
        return gate[:, self._index("heads", gate.device)]

    def _index(self, name: str, device: torch.device) -> Tensor:
        index = self._indices.get((name, device))
        if index is None:
            values = {"kv": self.kv_of_head, "cells": self._cells, "heads": self.heads}[name]
            index = self._indices[name, device] = torch.tensor(values, device=device)
        return index


def head_layouts(decoder: Any) -> list[HeadLayout]:
    """The heads of each layer of a transformers decoder: those that `shrink` left, or all of them."""
    config = decoder.config
    whole = HeadLayout("1" * config.num_attention_heads, config.num_key_value_heads)
    return [getattr(layer.self_attn, "head_layout", whole) for layer in decoder.layers]


def shrink(attention: Any, layout: HeadLayout) -> nn.Module:
    """An attention module with room for the heads of `layout` only, in place of `attention`.

    attention: a transformers attention, with head_dim, num_key_value_groups and the four projections. Its new
    weights hold nothing yet.

    Raises:
        ValueError: no head is left, and an output projection with a bias, which would still speak.
    """
    output = attention.o_proj
    if not layout.heads:
        if output.bias is not None:
            raise ValueError("a layer whose output projection has a bias cannot lose all of its heads")
        return SilentAttention(attention.layer_idx, layout)
    num_queries, num_keys = (attention.head_dim * len(heads) for heads in (layout.heads, layout.kv_heads))
    for name, size in (("q_proj", num_queries), ("k_proj", num_keys), ("v_proj", num_keys)):
        old = getattr(attention, name)
        setattr(attention, name, nn.Linear(old.in_features, size, bias=old.bias is not None))
    attention.o_proj = nn.Linear(num_queries, output.out_features, bias=output.bias is not None)
    attention.num_key_value_groups = layout.group_size
    attention.head_layout = layout
    return attention  # type: ignore[no-any-return]


class SilentAttention(nn.Module):
    """The attention of a layer without heads: adds nothing, computes nothing, has no weights."""

    def __init__(self, layer_idx: int, layout: HeadLayout) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_layout = layout

    def forward(
        self,
        hidden_states: Tensor,
        *,
        cache: Any = None,
        past_key_values: Any = None,
        seen_layers: deque[int] | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Zeros [batch, seq, hidden]. One number a position goes into the cache, by which generate counts."""
        if seen_layers is not None:
            seen_layers.append(self.layer_idx)
        cache = past_key_values if cache is None else cache
        if cache is not None:
            marker = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(marker, marker, self.layer_idx)
        return torch.zeros_like(hidden_states), None
