"""Qwen2-Audio of any size with random weights, made on the device; only a tokenizer is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    AutoProcessor,
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from lalm import head_gate, tiny
from lalm.families.qwen2_audio import FAMILY, Qwen2AudioFamily
from lalm.family import ModelFamily
from lalm.head_mask import ModelIdentity


@dataclass(frozen=True)
class Shape:
    """Sizes of decoder and encoder; the decoder has as many key-value heads as query heads."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    encoder_size: int
    encoder_layers: int
    encoder_heads: int


# Source: config.json of Qwen/Qwen2-Audio-7B.
QWEN2_AUDIO_7B = Shape(4096, 11_008, 32, 32, 156_032, 1280, 32, 20)
SMALL = Shape(128, 256, 2, 8, 1000, 64, 2, 4)


def random_family(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> ModelFamily:
    """A frozen and gated model whose answers have no end: random tokens, as fast or slow as real ones.

    Embeddings, tokenizer and features are the embedded model's, whose ids are a part of the vocabulary.
    """
    processor = AutoProcessor.from_pretrained(tiny.CHECKPOINT)  # type: ignore[no-untyped-call]
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=processor.feature_extractor.feature_size,
            d_model=shape.encoder_size,
            encoder_layers=shape.encoder_layers,
            encoder_attention_heads=shape.encoder_heads,
            encoder_ffn_dim=4 * shape.encoder_size,
        ),
        text_config=Qwen2Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_heads,
            max_position_embeddings=8192,
        ),
        audio_token_index=processor.tokenizer.convert_tokens_to_ids(processor.audio_token),
    )
    config._attn_implementation = "sdpa"
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            model = Qwen2AudioForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    ends = {"eos_token_id": shape.vocab_size - 1, "pad_token_id": 0}
    model.generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    head_gate.install(model.model.language_model)
    identity = ModelIdentity(
        family=FAMILY,
        name="random-qwen2-audio",
        fingerprint="sha256:" + "0" * 64,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
    )
    return Qwen2AudioFamily(model, processor, identity)
