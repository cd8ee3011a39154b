"""SALMONN's encoders and bridge, made of their parts."""

from __future__ import annotations

import re
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lalm.errors import ModelError
from lalm.families.salmonn.beats import Beats
from lalm.families.salmonn.checkpoint import fill, in_memory
from lalm.families.salmonn.hearing import Bridge, qformer_config, stored_dtype
from lalm.families.salmonn.parts import Parts

_BIAS = "relative_attention_bias.weight"
_POS_CONV = "encoder.pos_conv.0.weight"
_QFORMER = "speech_Qformer."


def whisper_encoder(parts: Parts, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Whisper's encoder.

    Raises:
        ModelError: tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        encoder = WhisperEncoder(parts.whisper_config)
    fill(encoder, parts.whisper.tensors, partial(stored_dtype, dtype), device, parts.whisper.path)
    return encoder


def beats_encoder(parts: Parts, device: torch.device, dtype: torch.dtype) -> Beats:
    """BEATs.

    Raises:
        ModelError: tensors are missing, unknown or of another shape.
    """
    renamed = {_beats_name(name): tensor for name, tensor in parts.beats.tensors.items()}
    # weight norm: a direction and a length for each of the kernel's positions
    direction, length = renamed.pop(f"{_POS_CONV}_v", None), renamed.pop(f"{_POS_CONV}_g", None)
    if direction is not None and length is not None:
        renamed[_POS_CONV] = in_memory(torch._weight_norm(direction[...], length[...], 2))
    with torch.device("meta"):
        beats = Beats(parts.beats_config)
    fill(beats, renamed, partial(stored_dtype, dtype), device, parts.beats.path)
    return beats


def bridge_module(parts: Parts, device: torch.device, dtype: torch.dtype) -> Bridge:
    """The bridge, of the sizes its tensors have; they do not tell the number of the Q-Former's heads.

    Raises:
        ModelError: tensors are missing, unknown or of another shape, or it was made for other encoders or
            another decoder.
    """
    path, num_heads = parts.bridge.path, parts.keys.qformer_heads
    tensors = {_bridge_name(name): tensor for name, tensor in parts.bridge.tensors.items()}
    try:
        width = tensors["speech_query_tokens"].get_shape()[-1]
        inner = tensors[f"{_QFORMER}encoder.layer.0.intermediate_query.dense.weight"].get_shape()[0]
        widths = {
            "Whisper": (parts.whisper_config.d_model, tensors["ln_speech.weight"].get_shape()[0]),
            "BEATs": (parts.beats_config.encoder_embed_dim, tensors["ln_audio.weight"].get_shape()[0]),
            "Vicuna": (parts.vicuna_config.hidden_size, tensors["speech_llama_proj.weight"].get_shape()[0]),
        }
    except (KeyError, IndexError) as error:
        raise ModelError(f"{path}: not a SALMONN checkpoint with a Q-Former: {error} is missing") from error
    for part, (has, needed) in widths.items():
        if has != needed:
            raise ModelError(f"{path}: made for a {part} of width {needed}, the one given has {has}")
    if width % num_heads:
        raise ModelError(f"{path}: a Q-Former of width {width} cannot have {num_heads} heads")
    layers = {found[1] for name in tensors if (found := re.search(r"encoder\.layer\.(\d+)\.", name))}
    (speech, _), (audio, _), (hidden, _) = widths.values()
    config = qformer_config(width, inner, len(layers), num_heads, speech + audio)
    with torch.device("meta"):
        bridge = Bridge(speech, audio, config, hidden)
    fill(bridge, tensors, partial(stored_dtype, dtype), device, path)
    return bridge


def _beats_name(name: str) -> str:
    return f"encoder.position_bias.{_BIAS}" if name.endswith(_BIAS) else name


def _bridge_name(name: str) -> str:
    """A name of the published checkpoint's Q-Former as transformers' Q-Former has it."""
    inner = name.replace(f"{_QFORMER}bert.", _QFORMER).replace("embeddings.LayerNorm.", "layernorm.")
    return inner.replace("attention.self.", "attention.attention.")
