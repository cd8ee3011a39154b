"""Whether the packed pass may stand in for a decoder's own forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import structlog
import torch

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from lalm.pruned_attention import HeadLayout, head_layouts
from service.inference.chunk import Chunk
from service.inference.kv_cache import KvCache
from service.inference.packed import PackedDecoder

# A decoder whose attention weights are larger leaves no room for a copy of them for each head mask.
MAX_ATTENTION_BYTES = 256 * 2**20
_ROPE_TYPES = {"default", "linear", "llama3"}  # those that do not depend on the length of a sequence
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_PROBE_TOKENS = 7

log = structlog.get_logger(__name__)


def can_pack(family: ModelFamily) -> bool:
    """Whether the packed pass is written for this decoder, and gives what the decoder gives.

    It is for small enough decoders of the Qwen2 and LLaMA kind in float32 on a CPU, with full attention;
    pruned ones too, while a head is left. Costs a pass of each.
    """
    if family.device.type != "cpu" or family.dtype is not torch.float32 or not _has_the_parts(family.decoder):
        return False
    if any(weight.device.type != "cpu" for weight in family.decoder.parameters()):
        return False  # spread over several devices
    if not _agrees(family):
        log.warning("the packed pass does not agree with the decoder, and is not used")
        return False
    return True


def _has_the_parts(decoder: Any) -> bool:
    layers = getattr(decoder, "layers", None)
    if layers is None or not hasattr(decoder, "rotary_emb") or not hasattr(decoder, "norm"):
        return False
    config = decoder.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return False
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return False
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        return False
    if any({name for name, _ in layer.named_children()} != _LAYER_PARTS for layer in layers):
        return False
    attentions = [
        (layer.self_attn, layout)
        for layer, layout in zip(layers, head_layouts(decoder), strict=True)
        if layout.heads
    ]
    if not attentions or not all(_has_the_projections(*pair) for pair in attentions):
        return False
    num_bytes = sum(weight.nbytes for layer in layers for weight in layer.self_attn.parameters())
    return bool(num_bytes <= MAX_ATTENTION_BYTES)


def _has_the_projections(attention: Any, layout: HeadLayout) -> bool:
    projections = dict(attention.named_children())
    if set(projections) != _ATTENTION_PARTS:
        return False
    if any(type(linear) is not torch.nn.Linear for linear in projections.values()):
        return False
    num_heads = {"q_proj": len(layout.heads), "k_proj": len(layout.kv_heads)}
    return all(projections[name].out_features == num_heads[name] * attention.head_dim for name in num_heads)


@torch.inference_mode()
def _agrees(family: ModelFamily) -> bool:
    """Both on the same random positions under a random head mask, in one piece and in two."""
    decoder: Any = family.decoder
    identity = family.identity
    shape = (identity.num_layers, identity.num_heads)
    heads = np.stack([layout.kept for layout in head_layouts(decoder)])
    there = np.random.default_rng(0).permutation(np.flatnonzero(heads))
    heads.flat[there[: len(there) // 3]] = False
    head_mask = HeadMask(heads)
    generator = torch.Generator().manual_seed(0)
    hidden_size: int = decoder.config.hidden_size
    scale = decoder.get_input_embeddings().weight.std()
    inputs = scale * torch.randn(_PROBE_TOKENS, hidden_size, generator=generator)
    gate = gate_tensor([head_mask], *shape)
    theirs = decoder(inputs_embeds=inputs[None], use_cache=False, head_gate=gate).last_hidden_state[0]

    cache = KvCache(identity.num_layers, 1, _PROBE_TOKENS)
    cache.reserve(1, _PROBE_TOKENS)
    packed = PackedDecoder(decoder, cache, _PROBE_TOKENS)
    start = _PROBE_TOKENS - 2
    ours = torch.cat(
        [
            packed(inputs[:start], [Chunk(0, 0, start, head_mask, num_outputs=start)]),
            packed(inputs[start:], [Chunk(0, start, 2, head_mask, num_outputs=2)]),
        ]
    )
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
