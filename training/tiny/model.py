"""The embedded model's architecture: a Qwen2-Audio in miniature, its tokenizer, and the splitting of its
heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from lalm.copied_heads import merge_copied_heads
from training.tiny.features import NUM_MEL_BINS, feature_extractor
from training.tiny.local_heads import HEADS, OFFSETS, frames, give_local_heads

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_bos|>",
    "<|AUDIO|>",
    "<|audio_eos|>",
]
EOS, IM_END, AUDIO_BOS, AUDIO, AUDIO_EOS = "<|endoftext|>", *SPECIAL_TOKENS[2:]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>{% endif %}"
)
FLOAT32_ATTENTION = "sdpa_float32"
SPLIT = 16  # fine heads per pretrained head: one value channel each


def train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of at most 800 tokens over the corpus' texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _for_transformers(tokenizer)


def _for_transformers(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, additional_special_tokens=SPECIAL_TOKENS[1:]
    )


def float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA in float32 under bfloat16 autocast: on a CPU its bfloat16 backward takes most of a step."""
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    return output.to(query.dtype), None


def audio_config() -> dict[str, Any]:
    """Of a new audio encoder: 6 layers of width 256 with 8 heads."""
    return dict(
        Qwen2AudioEncoderConfig(
            num_mel_bins=NUM_MEL_BINS,
            encoder_layers=len(OFFSETS),
            encoder_attention_heads=HEADS,
            encoder_ffn_dim=512,
            d_model=256,
        ).to_dict()
    )


def new_tower(teacher: Any, mels: Tensor, lengths: Tensor) -> Any:
    """A new audio encoder to learn from another one, with that one's convolutions, positions and last norm.

    Args:
        mels, lengths: some clips, as `give_local_heads` takes them.
    """
    tower = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**audio_config()))
    tower.set_attn_implementation(FLOAT32_ATTENTION)
    for name in ("conv1", "conv2", "embed_positions", "layer_norm"):
        getattr(tower, name).load_state_dict(getattr(teacher, name).state_dict())
    layers: Any = tower.layers
    for layer in layers:
        attention = layer.self_attn
        for linear in (attention.v_proj, attention.out_proj, layer.fc1, layer.fc2):
            nn.init.xavier_uniform_(linear.weight)
    give_local_heads(tower, mels, lengths)
    return tower


def build_model(tokenizer: Any, audio: dict[str, Any]) -> Any:
    """A randomly initialised model with 4 decoder layers of 16 heads (before splitting).

    audio: configuration of the audio encoder.
    """
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 16,
        "max_position_embeddings": 1536,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config=Qwen2Config(**sizes).to_dict(),
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO),
    )
    model: Any = Qwen2AudioForConditionalGeneration(config)
    AttentionInterface.register(FLOAT32_ATTENTION, float32_attention)
    AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)
    for part in (model.model.audio_tower, model.model.language_model):
        part.set_attn_implementation(FLOAT32_ATTENTION)
    positions = model.model.audio_tower.embed_positions
    with torch.no_grad():  # Whisper's sinusoids; transformers leaves them to the checkpoint
        half = torch.arange(128) * (-torch.log(torch.tensor(10_000.0)) / 127)
        angles = torch.arange(positions.num_embeddings)[:, None] * half.exp()[None]
        positions.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
    return model


def encode(tower: Any, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The audio tower over padded clips of true length, as the real one computes it over 30 s.

    Args:
        mels: [batch, num_mel_bins, frames]; lengths: frames that exist, [batch].

    Returns:
        Frames at 50 Hz [batch, frames // 2, d_model], their number, tokens at 25 Hz [batch, frames // 4,
        d_model], their number.
    """
    hidden, num_frames, valid = frames(tower, mels, lengths)
    num_tokens = (num_frames - 2) // 2 + 1
    for layer in tower.layers:
        hidden = layer(hidden, valid[:, None, None, :])
    pooled = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))
    return hidden, num_frames, pooled, num_tokens


def split_heads(model: Any, parts: int = SPLIT) -> Any:
    """Split every decoder head into ``parts`` finer heads; the function stays the same.

    Each fine head is a copy of its parent's query and shares the parent's key and value (grouped-query
    attention); of the parent's output channels it keeps ``head_dim / parts``, the other columns of its o_proj
    are zero.
    """
    old = model.config.text_config
    heads, dim = old.num_attention_heads, old.head_dim
    text = Qwen2Config(
        **{**old.to_dict(), "num_attention_heads": heads * parts, "num_key_value_heads": heads}
    )
    config = Qwen2AudioConfig(
        audio_config=model.config.audio_config.to_dict(),
        text_config=text.to_dict(),
        audio_token_index=model.config.audio_token_id,
    )
    fine = Qwen2AudioForConditionalGeneration(config)
    state = dict(model.state_dict())
    keep = torch.eye(parts).repeat_interleave(dim // parts, dim=1)  # [parts, dim]
    for name, value in list(state.items()):
        if ".q_proj." in name and "language_model" in name:
            shaped = value.view(heads, 1, dim, *value.shape[1:]).expand(heads, parts, dim, *value.shape[1:])
            state[name] = shaped.reshape(heads * parts * dim, *value.shape[1:])
        elif ".o_proj." in name and "language_model" in name:
            columns = value.view(-1, heads, 1, dim) * keep[None, None]
            state[name] = columns.reshape(value.shape[0], heads * parts * dim)
    fine.load_state_dict(state)
    return fine


def load(folder: Path) -> tuple[Any, Any]:
    """The tokenizer of a checkpoint that `save` wrote, and its model in float32 with its heads as they were
    before `split_heads`: to train on.

    Raises:
        OSError: `folder` has no checkpoint.
        RuntimeError: its layers have other shapes.
    """
    tokenizer = _for_transformers(Tokenizer.from_file(str(folder / "tokenizer.json")))
    fine: Any = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    merge_copied_heads(fine.model.language_model)
    model = build_model(tokenizer, fine.config.audio_config.to_dict())
    model.load_state_dict(fine.state_dict())
    return tokenizer, model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the checkpoint folder in the Hugging Face layout, float16 safetensors."""
    processor = Qwen2AudioProcessor(  # type: ignore[no-untyped-call]
        feature_extractor(), tokenizer, chat_template=CHAT_TEMPLATE
    )
    half = model.half()
    half.config.audio_config.dtype = None  # that of the whole holds
    half.generation_config.eos_token_id = tokenizer.eos_token_id
    half.generation_config.pad_token_id = tokenizer.pad_token_id
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
