"""The attention weights that a head mask leaves, so that silenced heads cost nothing.

A silenced head multiplies its output by zero: its query rows, its columns of the output projection, and keys
and values that no active head reads, need not be computed. What is left of each layer is copied together once
for each head mask:

    qkv = [q of the active heads; k; v of the key-value heads they read]      one product instead of three
    out = the columns of the output projection that belong to the active heads

The rows of q and k of a head are reordered from transformers' (x_0 … x_{d/2-1}, y_0 … y_{d/2-1}) to pairs
(x_0, y_0, x_1, y_1, …): their dot product does not change, and the rotary embedding is one complex product.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lalm.head_mask import HeadMask

# Copies of attention weights kept at most, over all head masks.
MAX_SLICE_BYTES = 2**30


@dataclass(frozen=True)
class LayerSlice:
    """One layer under one head mask. A layer without active head has num_q = 0 and no weights but `out_bias`.

    qkv: float32 [(num_q + 2 * num_kv) * head_dim, hidden]; out: float32 [hidden, num_q * head_dim].
    kv_heads: the numbers of its num_kv key-value heads in the whole layer; a slice when they are all.
    kv_of_q: int [num_q], the key-value head (counted among the num_kv) of each active head.
    spread: int [num_kv * widest], for each key-value head its active heads, filled up to the widest with any;
    gather: int [num_q], where each active head stands in `spread`.
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

    attentions: a decoder's attention modules, each with linear q_proj, k_proj, v_proj and o_proj.
    num_bytes: what they take; at most `max_bytes`, but for a single head mask that takes more alone.
    """

    def __init__(
        self, attentions: list[Any], num_heads: int, head_dim: int, max_bytes: int = MAX_SLICE_BYTES
    ) -> None:
        self._attentions = attentions
        self._num_heads = num_heads
        self._head_dim = head_dim
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self._by_mask: OrderedDict[HeadMask | None, list[LayerSlice]] = OrderedDict()

    def of(self, head_mask: HeadMask | None) -> list[LayerSlice]:
        """One slice a layer; None is the plain model.

        Raises:
            ValueError: a head mask of another shape.
        """
        if head_mask in self._by_mask:
            self._by_mask.move_to_end(head_mask)
            return self._by_mask[head_mask]
        heads = self._heads(head_mask)
        slices = [self._slice(module, row) for module, row in zip(self._attentions, heads, strict=True)]
        self._by_mask[head_mask] = slices
        self.num_bytes += sum(part.num_bytes for part in slices)
        while self.num_bytes > self._max_bytes and len(self._by_mask) > 1:
            _, oldest = self._by_mask.popitem(last=False)
            self.num_bytes -= sum(part.num_bytes for part in oldest)
        return slices

    def _heads(self, head_mask: HeadMask | None) -> NDArray[np.bool_]:
        shape = (len(self._attentions), self._num_heads)
        if head_mask is None:
            return np.ones(shape, dtype=np.bool_)
        if head_mask.heads.shape != shape:
            raise ValueError(
                f"the head mask is {head_mask.num_layers} x {head_mask.num_heads}, "
                f"the decoder has {shape[0]} layers x {shape[1]} heads"
            )
        return head_mask.heads

    def _slice(self, module: Any, heads: NDArray[np.bool_]) -> LayerSlice:
        head_dim = self._head_dim
        num_kv_heads = module.k_proj.out_features // head_dim
        group_size = self._num_heads // num_kv_heads
        active = np.flatnonzero(heads)
        kv_heads, kv_of_q = np.unique(active // group_size, return_inverse=True)
        paired = np.arange(head_dim).reshape(2, -1).T.reshape(-1)
        plain = np.arange(head_dim)
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
            out=module.o_proj.weight[:, _rows(active, plain)].contiguous(),
            out_bias=module.o_proj.bias,
            kv_heads=slice(None) if len(kv_heads) == num_kv_heads else torch.from_numpy(kv_heads),
            kv_of_q=torch.from_numpy(kv_of_q),
            spread=spread,
            gather=gather,
        )


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
