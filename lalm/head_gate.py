"""How a head mask acts in a decoder: one attention function for every family.

For layer i and head j the attention output, before the output projection, is multiplied by the gate of
that layer, row and head; nothing else of the decoder is touched:

    MHA_i(X) = sum_j gate[i, row, j] · head_ij(X) · W_O_ij

The function is registered with transformers as the attention implementation `sdpa_head_gate`. It calls
transformers' own SDPA and multiplies, so that a gate of ones gives the plain model to the bit. The gate is a
tensor, and gradients flow to it: training passes relaxed values through the same function.

    install(decoder)                                                      once, after loading
    decoder(inputs_embeds=…, head_gate=gate_tensor(head_masks, …))        every call
    with gating(decoder, gate): model.generate(…)                         where the call is not ours

Source: AHAMask (arXiv 2509.01787), the masked multi-head attention equation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lalm.errors import ModelError
from lalm.head_mask import HeadMask
from lalm.pruned_attention import HeadLayout

ATTENTION = "sdpa_head_gate"

_sdpa = AttentionInterface()["sdpa"]  # type: ignore[no-untyped-call]


def gated_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    head_gate: Tensor | None = None,
    seen_layers: deque[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA, its output multiplied by the gate of this layer.

    query: [batch, num_heads, seq, head_dim]; key and value: [batch, num_kv_heads, seq, head_dim]; fewer heads
    where `module.head_layout` says that some are gone (`lalm.pruned_attention`).
    head_gate: [num_layers, batch, num_heads] of any float dtype, or None for the plain model.
    seen_layers: for `install`: the layer notes here that it came by.
    Returns the gated output [batch, seq, num_heads, head_dim], and no attention weights.

    Raises:
        ValueError: `head_gate` does not have the shape of this decoder and this batch.
    """
    layout: HeadLayout | None = getattr(module, "head_layout", None)
    attend = _sdpa if layout is None else partial(layout.attend, _sdpa)
    output, _ = attend(module, query, key, value, attention_mask, **kwargs)
    if head_gate is None:
        return output, None
    layer: int = module.layer_idx  # type: ignore[assignment]
    num_layers: int = module.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    expected = (num_layers, output.shape[0], output.shape[2] if layout is None else layout.num_heads)
    if head_gate.shape != expected:
        raise ValueError(
            f"head_gate has shape {tuple(head_gate.shape)}, "
            f"this call needs [num_layers, batch, num_heads] = {expected}"
        )
    if seen_layers is not None:
        seen_layers.append(layer)
    gate = head_gate[layer] if layout is None else layout.gate(head_gate[layer])
    return output * gate[:, None, :, None].to(output.dtype), None


AttentionInterface.register(ATTENTION, gated_attention)
AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])  # type: ignore[no-untyped-call]


def install(decoder: PreTrainedModel) -> None:
    """Make `decoder` use the gated attention, and see that a gate reaches every layer of it.

    decoder: a transformers decoder without head, that takes `inputs_embeds` and hands further keyword
    arguments down to its attention. Costs one forward pass of one position.

    Raises:
        ModelError: the decoder does not use transformers' attention interface, or not in every layer.
    """
    name, config = type(decoder).__name__, decoder.config
    if decoder._can_set_attn_implementation():
        decoder.set_attn_implementation(ATTENTION)
    if config._attn_implementation != ATTENTION:
        raise ModelError(f"{name} cannot be gated: it does not use transformers' attention interface")
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    probe = torch.zeros(1, 1, config.hidden_size, dtype=decoder.dtype, device=input_device(decoder))
    gate = probe.new_ones(num_layers, 1, num_heads)
    seen_layers: deque[int] = deque()  # a list would be copied on its way to another device
    try:
        with torch.no_grad():
            decoder(inputs_embeds=probe, use_cache=False, head_gate=gate, seen_layers=seen_layers)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{name} cannot be gated: {error}") from error
    if list(seen_layers) != list(range(num_layers)):
        raise ModelError(f"{name} cannot be gated: of {num_layers} layers a gate reaches {list(seen_layers)}")


def input_device(decoder: PreTrainedModel) -> torch.device:
    """Where `decoder` takes `inputs_embeds`: where its input embeddings are computed, wherever they are kept.

    accelerate keeps a parameter that is offloaded to the host or to disk on `meta` until it is used.
    """
    return execution_device(decoder.get_input_embeddings())


def execution_device(layer: Any) -> torch.device:
    """Where a layer with weights of its own computes."""
    stored: torch.device = layer.weight.device
    return torch.device(layer._hf_hook.execution_device) if stored.type == "meta" else stored


def gate_tensor(
    head_masks: Sequence[HeadMask | None],
    num_layers: int,
    num_heads: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One gate row for each head mask, ones for None: [num_layers, batch, num_heads].

    Raises:
        ValueError: a head mask of another shape.
    """
    gate = np.ones((num_layers, len(head_masks), num_heads), dtype=np.float32)
    for row, head_mask in enumerate(head_masks):
        if head_mask is None:
            continue
        if head_mask.heads.shape != (num_layers, num_heads):
            raise ValueError(
                f"the head mask of row {row} is {head_mask.num_layers} x {head_mask.num_heads}, "
                f"the decoder has {num_layers} layers x {num_heads} heads"
            )
        gate[:, row] = head_mask.heads
    return torch.from_numpy(gate).to(device=device, dtype=dtype)


@contextmanager
def gating(decoder: nn.Module, head_gate: Tensor | None) -> Iterator[None]:
    """Every call of `decoder` inside the block runs under `head_gate`; for code that cannot pass it on.

    head_gate: [num_layers, batch, num_heads], or None to change nothing. A call whose batch is k times as
    large (beam search) uses each row k times in a row.

    Raises:
        ValueError: (in the call) the batch of the call is no multiple of the gate's.
    """
    if head_gate is None:
        yield
        return

    def add_gate(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "head_gate": _repeat_rows(head_gate, _batch_size(args, kwargs))}

    handle = decoder.register_forward_pre_hook(add_gate, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    inputs = kwargs.get("inputs_embeds")
    if inputs is None:
        inputs = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    return int(inputs.shape[0])


def _repeat_rows(head_gate: Tensor, batch_size: int) -> Tensor:
    num_rows = head_gate.shape[1]
    if num_rows == batch_size:
        return head_gate
    if num_rows == 0 or batch_size % num_rows:
        raise ValueError(f"head_gate has {num_rows} rows, the batch has {batch_size}")
    return head_gate.repeat_interleave(batch_size // num_rows, dim=1)
