"""A random-weight Qwen2-Audio checkpoint of toy size, in the layout of the real ones on disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|AUDIO|>",
)
WORDS = ("you", "are", "a", "helpful", "assistant", "system", "user", "what", "is", "said", "male", "female")


def write_toy_checkpoint(
    folder: Path,
    *,
    num_layers: int = 3,
    num_heads: int = 8,
    num_kv_heads: int = 2,
    hidden_size: int = 64,
    encoder_layers: int = 2,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Path:
    """Write config, weights, processor and tokenizer into `folder`; equal arguments give equal files."""
    tokenizer = toy_tokenizer()
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    (folder / "processor_config.json").unlink()  # the real ones have the older preprocessor_config.json
    extractor.save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            d_model=32, encoder_layers=encoder_layers, encoder_attention_heads=4, encoder_ffn_dim=64
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer) + 10,  # padded, as the real ones are
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            max_position_embeddings=2048,
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    toy_model(config, tokenizer, seed).to(dtype).save_pretrained(folder)
    return folder


def toy_tokenizer() -> Qwen2Tokenizer:
    """All bytes, a few whole words, and the special tokens of Qwen2-Audio."""
    pieces: list[str] = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in [*(f"Ġ{word}" for word in WORDS), *WORDS]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Qwen2Tokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def toy_model(
    config: Qwen2AudioConfig, tokenizer: Qwen2Tokenizer, seed: int
) -> Qwen2AudioForConditionalGeneration:
    """Weights large enough that audio, instruction and every head change the answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2AudioForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 1.0 / math.sqrt(parameter[0].numel()))
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.1)
            model.model.language_model.embed_tokens.weight.normal_(0.0, 1.0)
            model.model.audio_tower.embed_positions.weight.copy_(_sinusoids(config.audio_config))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def toy_waveform(duration_s: float, seed: int = 0) -> NDArray[np.float32]:
    """A gliding tone in noise, float32 [num_samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(16_000 * duration_s)) / 16_000
    start_hz, slope_hz = rng.uniform(100, 400), rng.uniform(50, 500)
    tone = np.sin(2 * np.pi * (start_hz + slope_hz * time_s) * time_s)
    return (0.3 * tone + 0.02 * rng.standard_normal(time_s.size)).astype(np.float32)


def _sinusoids(config: Qwen2AudioEncoderConfig) -> torch.Tensor:
    num_channels = config.d_model // 2
    scales = torch.exp(-math.log(10_000) / (num_channels - 1) * torch.arange(num_channels))
    angles = torch.arange(config.max_source_positions)[:, None] * scales
    return torch.cat([angles.sin(), angles.cos()], dim=1)
