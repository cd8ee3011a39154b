"""Random weights of any shape in the published files of SALMONN, for measurements that need no real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lalm.families.salmonn.beats import Beats, BeatsConfig
from lalm.families.salmonn.hearing import Bridge, qformer_config

LORA_RANK = 8
_STD = 0.02
_POS_CONV = "encoder.pos_conv.0.weight"
_BIAS = "relative_attention_bias.weight"


@dataclass(frozen=True)
class Shape:
    """Sizes of a SALMONN; `width` of hidden states, `inner` of feed-forwards."""

    num_layers: int
    num_heads: int
    width: int
    inner: int
    vocab_size: int
    whisper_layers: int
    whisper_width: int
    whisper_heads: int
    beats_layers: int
    beats_width: int
    beats_heads: int
    beats_patch_width: int
    qformer_width: int
    qformer_heads: int
    num_shards: int


SALMONN_13B = Shape(40, 40, 5120, 13824, 32_000, 32, 1280, 20, 12, 768, 12, 512, 768, 12, num_shards=3)
SALMONN_7B = Shape(32, 32, 4096, 11008, 32_000, 32, 1280, 20, 12, 768, 12, 512, 768, 12, num_shards=2)
SMALL = Shape(4, 4, 64, 128, 320, 2, 32, 4, 2, 32, 4, 24, 48, 4, num_shards=2)


def write_random_salmonn(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """Write all files, one shard in memory at a time; returns the model file. `device` makes the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        whisper = WhisperEncoder(_whisper_config(shape))
        beats = Beats(BeatsConfig.parse(_beats_cfg(shape)))
        bridge = _bridge(shape)
    _write_vicuna(folder / "vicuna", shape, device)
    _write_whisper(folder / "whisper", whisper, shape, device)
    torch.save({"cfg": _beats_cfg(shape), "model": dict(_beats_tensors(beats, device))}, folder / "beats.pt")
    tensors = dict(_bridge_tensors(bridge, device)) | dict(_lora_tensors(shape, device))
    torch.save({"model": tensors}, folder / "salmonn.pth")
    path = folder / "random-salmonn.toml"
    parts = {"vicuna": "vicuna", "whisper": "whisper", "beats": "beats.pt", "salmonn": "salmonn.pth"}
    lines = [f'{key} = "{value}"' for key, value in ({"family": "salmonn"} | parts).items()]
    path.write_text("\n".join([*lines, f"qformer_heads = {shape.qformer_heads}", ""]))
    return path


def _write_vicuna(folder: Path, shape: Shape, device: str) -> None:
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=2048,
    )
    config.save_pretrained(folder)
    _write_tokenizer(folder)
    with torch.device("meta"):
        slots = list(LlamaForCausalLM(config).state_dict().items())
    per_shard = -(-len(slots) // shape.num_shards)
    weight_map = {}
    for number in range(shape.num_shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shape.num_shards:05d}.bin"
        part = slots[number * per_shard : (number + 1) * per_shard]
        torch.save(dict(_random(part, device, torch.float16)), folder / file)
        weight_map |= {name: file for name, _ in part}
    index = {"metadata": {"total_size": sum(2 * slot.numel() for _, slot in slots)}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _write_tokenizer(folder: Path) -> None:
    """All bytes and a few pieces: what is said does not matter, only that every text can be encoded."""
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["USER: speech ASSISTANT: recognize the speech"] * 4),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )


def _write_whisper(folder: Path, whisper: nn.Module, shape: Shape, device: str) -> None:
    _whisper_config(shape).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    slots = ((f"model.encoder.{name}", slot) for name, slot in whisper.state_dict().items())
    save_file(dict(_random(slots, device, torch.float32)), folder / "model.safetensors")


def _whisper_config(shape: Shape) -> WhisperConfig:
    return WhisperConfig(
        d_model=shape.whisper_width,
        encoder_layers=shape.whisper_layers,
        encoder_attention_heads=shape.whisper_heads,
        encoder_ffn_dim=4 * shape.whisper_width,
        num_mel_bins=80,
    )


def _beats_cfg(shape: Shape) -> dict[str, object]:
    return {
        "encoder_layers": shape.beats_layers,
        "encoder_embed_dim": shape.beats_width,
        "encoder_ffn_embed_dim": 4 * shape.beats_width,
        "encoder_attention_heads": shape.beats_heads,
        "activation_fn": "gelu",
        "layer_norm_first": False,
        "conv_bias": False,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "deep_norm": True,
        "input_patch_size": 16,
        "embed_dim": shape.beats_patch_width,
    }


def _bridge(shape: Shape) -> Bridge:
    heard = shape.whisper_width + shape.beats_width
    config = qformer_config(shape.qformer_width, 4 * shape.qformer_width, 2, shape.qformer_heads, heard)
    return Bridge(shape.whisper_width, shape.beats_width, config, shape.width)


def _beats_tensors(beats: Beats, device: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _random(beats.state_dict().items(), device, torch.float32):
        if name == _POS_CONV:
            yield f"{name}_v", tensor
            yield f"{name}_g", tensor.square().sum(dim=(0, 1), keepdim=True).sqrt()
        elif name.endswith(_BIAS):
            yield f"encoder.layers.0.self_attn.{_BIAS}", tensor
        else:
            yield name, tensor


def _bridge_tensors(bridge: Bridge, device: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _random(bridge.state_dict().items(), device, torch.float32):
        published = name.replace("attention.attention.", "attention.self.")
        published = published.replace("speech_Qformer.layernorm.", "speech_Qformer.embeddings.LayerNorm.")
        yield published.replace("speech_Qformer.", "speech_Qformer.bert."), tensor


def _lora_tensors(shape: Shape, device: str) -> Iterator[tuple[str, Tensor]]:
    slots = []
    with torch.device("meta"):
        for layer in range(shape.num_layers):
            for projection in ("q_proj", "v_proj"):
                stem = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{projection}"
                slots.append((f"{stem}.lora_A.default.weight", torch.empty(LORA_RANK, shape.width)))
                slots.append((f"{stem}.lora_B.default.weight", torch.empty(shape.width, LORA_RANK)))
    return _random(slots, device, torch.float32)


def _random(
    slots: Iterable[tuple[str, Tensor]], device: str, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Matrices of a normal distribution, scales of one, shifts of zero, on the CPU."""
    for name, slot in slots:
        if slot.ndim > 1:
            yield name, torch.randn(slot.shape, device=device, dtype=dtype).mul_(_STD).cpu()
        else:
            yield name, torch.full(slot.shape, float(not name.endswith("bias")), dtype=dtype)
