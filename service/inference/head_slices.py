"""The attention weights that a head mask leaves, so that silenced heads cost nothing.

A silenced head multiplies its output by zero: its query rows, its columns of the output projection, and keys
and values that no active head reads, need not be computed. What is left of each layer is copied together once
for each head mask:

    qkv = [q of the active heads; k; v of the key-value heads they read]      one product instead of three
    out = the columns of the output projection that belong to the active heads

Heads that read the same key-value head with the same query (`lalm.copied_heads`) see the same: they are one
head here, whose columns of the output projection are the sum of theirs.

The rows of q and k of a head are reordered from transformers' (x_0 … x_{d/2-1}, y_0 … y_{d/2-1}) to pairs
(x_0, y_0, x_1, y_1, …): their dot product does not change, and the rotary embedding is one complex product.

Each layer of a pruned decoder (`lalm.pruned_attention`) has its own heads. A head mask still counts all heads
of the unpruned layer; those that are gone are silent whatever it says.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lalm.copied_heads import queries_are_copies
from lalm.head_mask import HeadMask
from lalm.pruned_attention import HeadLayout

# Copies of attention weights kept at most, over all head masks.
MAX_SLICE_BYTES = 2**30


@dataclass(frozen=True)
class LayerSlice:
    """One layer under one head mask. A layer without active head has num_q = 0 and no weights but `out_bias`.
    num_q: the active heads, copies counted once.

    qkv: float32 [(num_q + 2 * num_kv) * head_dim, hidden]; out: float32 [hidden, num_q * head_dim].
    kv_heads: the places of its num_kv key-value heads among the layer's; a slice when they are all.
    kv_of_q: int [num_q], the key-value head (counted among the num_kv) of each of these heads.
    spread: int [num_kv * widest], for each key-value head its heads, filled up to the widest with any;
    gather: int [num_q], where each head stands in `spread`.
    """

    num_q: int
    num_kv: int
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    kv_heads: slice | Tensor
    kv_of_q: Tensor
    spread: Tensor
    gather: Tensor

    @property
    def num_bytes(self) -> int:
        return self.qkv.nbytes + self.out.nbytes


class HeadSlices:
    """The slices of every layer by head mask; the least recently used go when there are too many.

    attentions: a decoder's attention modules; those with heads have linear q_proj, k_proj, v_proj and o_proj.
    layouts: the heads of each.
    num_bytes: what they take; at most `max_bytes`, but for a single head mask that takes more alone.
    whole_has_every_head: the plain model's slices have each of its heads, so that their output can be gated.
    """

    def __init__(
        self,
        attentions: list[Any],
        layouts: list[HeadLayout],
        head_dim: int,
        max_bytes: int = MAX_SLICE_BYTES,
    ) -> None:
        self._attentions = attentions
        self._layouts = layouts
        self._kept: NDArray[np.bool_] = np.stack([layout.kept for layout in layouts])
        self._head_dim = head_dim
        self._copies = [
            bool(layout.heads)
            and queries_are_copies(
                (module.q_proj.weight, module.q_proj.bias), torch.tensor(layout.kv_of_head)
            )
            for module, layout in zip(attentions, layouts, strict=True)
        ]
        self.whole_has_every_head = bool(self._kept.all()) and not any(self._copies)
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self._by_mask: OrderedDict[HeadMask | None, list[LayerSlice]] = OrderedDict()

    def of(self, head_mask: HeadMask | None) -> list[LayerSlice]:
        """One slice a layer; None is the plain model, and so is a head mask that silences none of its heads.

        Raises:
            ValueError: a head mask of another shape.
        """
        heads = self._heads(head_mask)
        key = None if np.array_equal(heads, self._kept) else head_mask
        if key in self._by_mask:
            self._by_mask.move_to_end(key)
            return self._by_mask[key]
        slices = [self._slice(layer, row) for layer, row in enumerate(heads)]
        self._by_mask[key] = slices
        self.num_bytes += sum(part.num_bytes for part in slices)
        while self.num_bytes > self._max_bytes and len(self._by_mask) > 1:
            _, oldest = self._by_mask.popitem(last=False)
            self.num_bytes -= sum(part.num_bytes for part in oldest)
        return slices

    def _heads(self, head_mask: HeadMask | None) -> NDArray[np.bool_]:
        """The active ones among those that are there: [num_layers, num_heads]."""
        if head_mask is None:
            return self._kept
        if head_mask.heads.shape != self._kept.shape:
            raise ValueError(
                f"the head mask is {head_mask.num_layers} x {head_mask.num_heads}, "
                f"the decoder has {self._kept.shape[0]} layers x {self._kept.shape[1]} heads"
            )
        active: NDArray[np.bool_] = head_mask.heads & self._kept
        return active

    def _slice(self, layer: int, heads: NDArray[np.bool_]) -> LayerSlice:
        module, layout = self._attentions[layer], self._layouts[layer]
        if not layout.heads:
            return _without_weights()
        head_dim = self._head_dim
        active = np.flatnonzero(heads[layout.heads])
        kv_heads, first, kv_of_q = np.unique(
            np.array(layout.kv_of_head)[active], return_index=True, return_inverse=True
        )
        paired = np.arange(head_dim).reshape(2, -1).T.reshape(-1)
        plain = np.arange(head_dim)
        out = module.o_proj.weight[:, _rows(active, plain)]
        if self._copies[layer]:
            out = _sum_columns(out, kv_of_q, head_dim)
            active, kv_of_q = active[first], np.arange(len(kv_heads))
        parts = [
            (module.q_proj, _rows(active, paired)),
            (module.k_proj, _rows(kv_heads, paired)),
            (module.v_proj, _rows(kv_heads, plain)),
        ]
        biased = module.q_proj.bias is not None
        spread, gather = _spread(kv_of_q, len(kv_heads))
        return LayerSlice(
            num_q=len(active),
            num_kv=len(kv_heads),
            qkv=torch.cat([linear.weight[rows] for linear, rows in parts]),
            qkv_bias=torch.cat([linear.bias[rows] for linear, rows in parts]) if biased else None,
            out=out.contiguous(),
            out_bias=module.o_proj.bias,
            kv_heads=slice(None) if len(kv_heads) == len(layout.kv_heads) else torch.from_numpy(kv_heads),
            kv_of_q=torch.from_numpy(kv_of_q),
            spread=spread,
            gather=gather,
        )


def _sum_columns(out: Tensor, kv_of_q: NDArray[np.intp], head_dim: int) -> Tensor:
    """Columns [hidden, heads * head_dim] added up over the heads of each key-value head, which ascend."""
    of_head = out.view(len(out), -1, head_dim)
    summed = out.new_zeros(len(out), len(np.unique(kv_of_q)), head_dim)
    return summed.index_add_(1, torch.from_numpy(kv_of_q), of_head).flatten(1)


def _without_weights() -> LayerSlice:
    """Of a layer whose attention is gone."""
    weights, index = torch.empty(0), torch.empty(0, dtype=torch.int64)
    return LayerSlice(0, 0, weights, None, weights, None, slice(None), index, index, index)


def _rows(heads: NDArray[np.intp], within: NDArray[np.intp]) -> Tensor:
    """Rows of a projection that belong to `heads`, each head's in the order `within`."""
    return torch.from_numpy((heads[:, None] * len(within) + within).reshape(-1))


def _spread(kv_of_q: NDArray[np.intp], num_kv: int) -> tuple[Tensor, Tensor]:
    """`spread` and `gather` of a layer; kv_of_q ascends."""
    counts = np.bincount(kv_of_q, minlength=num_kv)
    widest = int(counts.max(initial=0))
    starts = np.cumsum(counts) - counts
    gather = kv_of_q * widest + np.arange(len(kv_of_q)) - starts[kv_of_q]
    spread = np.zeros(num_kv * widest, dtype=np.int64)
    spread[gather] = np.arange(len(kv_of_q))
    return torch.from_numpy(spread), torch.from_numpy(gather)
