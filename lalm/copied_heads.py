"""Heads that are copies of one another, computed once.

A decoder whose heads were split after pretraining (as the embedded model's: `split_heads` in
`training.tiny.model`) has groups of query heads with the same query, the same key and value, and output
channels of their own. The heads of a group then see the same, and a gate on one of them is a gate on its
channels: one head a group computes the same function, up to rounding, with a fraction of the attention.
Training and evaluation work on a decoder of that form (`merge_copied_heads`), the service's packed pass on
weights of that form; mask files, gates and fingerprints are those of the model as it is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lalm.pruned_attention import Attention


class CopiedHeads:
    """A layer's `head_layout` (see `lalm.head_gate`): num_heads heads, of which one a group is computed."""

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads

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
        """`attention` over one head a group: query, key and value [batch, groups, seq, head_dim].

        Returns the channels that each head keeps, [batch, seq, num_heads, head_dim * groups / num_heads].
        """
        output, rest = attention(module, query, key, value, *args, **kwargs)
        return output.reshape(*output.shape[:2], self.num_heads, -1), rest

    def gate(self, gate: Tensor) -> Tensor:
        """The gate [batch, num_heads] as it is."""
        return gate


def merge_copied_heads(decoder: Any) -> bool:
    """Compute one head a group, where every layer's heads are copies; tells whether they are.

    decoder: a transformers decoder with gated attention (`lalm.head_gate.install`); changed in place.
    """
    attentions = [getattr(layer, "self_attn", None) for layer in getattr(decoder, "layers", ())]
    if not attentions or not all(heads_are_copies(attention) for attention in attentions):
        return False
    for attention in attentions:
        _merge(attention, decoder.config.num_attention_heads)
    return True


def heads_are_copies(attention: Any) -> bool:
    """Whether the heads of each group have one query, and share out their output channels in order.

    attention: a transformers attention, of which no head is gone.
    """
    query, output = getattr(attention, "q_proj", None), getattr(attention, "o_proj", None)
    parts = getattr(attention, "num_key_value_groups", 1)
    if parts == 1 or type(query) is not nn.Linear or type(output) is not nn.Linear:
        return False
    dim: int = attention.head_dim
    if hasattr(attention, "head_layout") or dim % parts or output.bias is not None:
        return False
    kv_of_head = torch.arange(query.out_features // dim) // parts
    if not queries_are_copies((query.weight, query.bias), kv_of_head):
        return False
    columns = output.weight.view(output.out_features, -1, parts, dim)
    others = columns.masked_select(~_kept_channels(parts, dim).to(columns.device))
    return not bool(others.any())


def queries_are_copies(tensors: Iterable[Tensor | None], kv_of_head: Tensor) -> bool:
    """Whether heads that read one key-value head have one query, and some do.

    tensors: weights and biases of q_proj, [heads * head_dim, ...]; None is no bias.
    kv_of_head: int [heads], ascending from 0, each number there.
    """
    counts = torch.bincount(kv_of_head)
    if len(counts) == len(kv_of_head):
        return False
    first = (counts.cumsum(0) - counts)[kv_of_head]
    heads = (tensor.view(len(kv_of_head), -1) for tensor in tensors if tensor is not None)
    return all(torch.equal(of_one, of_one[first.to(of_one.device)]) for of_one in heads)


def _kept_channels(parts: int, dim: int) -> Tensor:
    """Which of the channels of its group each head keeps: bool [parts, dim]."""
    owner = torch.arange(dim) // (dim // parts)
    return owner == torch.arange(parts)[:, None]


@torch.no_grad()
def _merge(attention: Any, num_heads: int) -> None:
    parts, dim = attention.num_key_value_groups, attention.head_dim
    query, output = attention.q_proj, attention.o_proj
    first = query.weight.view(-1, parts, dim, query.in_features)[:, 0]
    query.weight = nn.Parameter(first.flatten(0, 1).clone(), requires_grad=False)
    if query.bias is not None:
        query.bias = nn.Parameter(
            query.bias.view(-1, parts, dim)[:, 0].flatten().clone(), requires_grad=False
        )
    columns = output.weight.view(output.out_features, -1, parts, dim).sum(2)
    output.weight = nn.Parameter(columns.flatten(1).clone(), requires_grad=False)
    query.out_features = output.in_features = num_heads // parts * dim
    attention.num_key_value_groups = 1
    attention.head_layout = CopiedHeads(num_heads)
