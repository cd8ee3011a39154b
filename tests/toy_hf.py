"""Toy checkpoints of the models that `lalm.families.hf` knows, in the layouts of the real ones on disk.

`WRITERS[name](folder)` writes one; `tests.hf_reference` has the model's inputs and answers by transformers.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    GenerationConfig,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperFeatureExtractor,
)

from tests.toy import toy_tokenizer

NUM_LAYERS, NUM_HEADS = 3, 8
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
}
WHISPER = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_mel_bins": 128,
}
TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'audio' %}AUDIO{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_with(*special_tokens: str) -> Any:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special_tokens])
    return tokenizer


def randomised(model: Any, seed: int = 0) -> Any:
    """Weights large enough that audio, instruction and every head change the answer."""
    generator = torch.Generator().manual_seed(seed)
    # a large embedding that is the head as well would repeat its last token for ever
    embedding_std = 0.1 if getattr(model.config, "tie_word_embeddings", False) else 1.0
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "embed_tokens" in name:
                parameter.normal_(0.0, embedding_std, generator=generator)
            elif name.endswith("query"):
                parameter.normal_(0.0, 1.0, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, 1.0 / math.sqrt(parameter[0].numel()), generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def write(folder: Path, model: Any, tokenizer: Any, extractor: Any, template: str, seed: int = 0) -> Path:
    randomised(model, seed).save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    GenerationConfig(eos_token_id=ends, pad_token_id=ends[1]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def write_audioflamingo3(folder: Path) -> Path:
    tokenizer = tokenizer_with("<sound>")
    config = AudioFlamingo3Config(
        audio_config={**WHISPER},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT},
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    # as the real one: a single place, however many audios the turn has
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set found = namespace(audio=False, text='') %}"
        "{% for c in m.content %}{% if c.type == 'audio' %}{% set found.audio = True %}"
        "{% else %}{% set found.text = found.text + c.text %}{% endif %}{% endfor %}"
        "{% if found.audio %}<sound>{% endif %}{{ found.text }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    return write(folder, AudioFlamingo3ForConditionalGeneration(config), tokenizer, extractor, template)


def write_glmasr(folder: Path) -> Path:
    tokenizer = tokenizer_with("<|begin_of_audio|>", "<|pad|>", "<|end_of_audio|>")
    config = GlmAsrConfig(
        audio_config={**WHISPER},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
        tie_word_embeddings=False,
    )
    template = TURN.replace("AUDIO", "<|begin_of_audio|><|pad|><|end_of_audio|>")
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    return write(folder, GlmAsrForConditionalGeneration(config), tokenizer, extractor, template, seed=2)


def write_qwen3_asr(folder: Path) -> Path:
    tokenizer = tokenizer_with("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>")
    config = Qwen3ASRConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "output_dim": 64,
            "downsample_hidden_size": 16,
        },
        text_config={"model_type": "qwen3", "vocab_size": len(tokenizer), **TEXT},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    # as the real one: what a user writes beside audio is dropped
    audio = "<|audio_start|><|audio_pad|><|audio_end|>"
    template = TURN.replace("AUDIO", audio).replace("{{ c.text }}", "")
    model = Qwen3ASRForConditionalGeneration(config)
    return write(folder, model, tokenizer, Qwen3ASRFeatureExtractor(), template)


def _omni(tokenizer: Any) -> Qwen2_5OmniThinkerConfig:
    text = {key: value for key, value in TEXT.items() if key not in ("head_dim", "rope_theta")}
    rope = {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [2, 1, 1]}
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "output_dim": 64,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 64,
        },
        text_config={"vocab_size": len(tokenizer), "rope_parameters": rope, **text},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        audio_start_token_id=tokenizer.convert_tokens_to_ids("<|audio_bos|>"),
        audio_end_token_id=tokenizer.convert_tokens_to_ids("<|audio_eos|>"),
        vision_start_token_id=None,
        vision_end_token_id=None,
        tie_word_embeddings=False,
    )


def write_qwen2_5_omni_thinker(folder: Path) -> Path:
    tokenizer = toy_tokenizer()
    template = TURN.replace("AUDIO", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300, return_attention_mask=True)
    model = Qwen2_5OmniThinkerForConditionalGeneration(_omni(tokenizer))
    return write(folder, model, tokenizer, extractor, template)


def write_qwen2_5_omni(folder: Path) -> Path:
    """The thinker inside the whole model's configuration and names, beside tensors of the other parts."""
    from safetensors.torch import load_file, save_file

    write_qwen2_5_omni_thinker(folder)
    path = folder / "model.safetensors"
    tensors = {f"thinker.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["talker.codec_head.weight"] = torch.ones(4, 4)
    save_file(tensors, path, metadata={"format": "pt"})
    thinker = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "qwen2_5_omni", "thinker_config": thinker, "enable_audio_output": False}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def write_voxtral(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{n}>" for n in range(5, 24))]
    special += ["[AUDIO]", "[BEGIN_AUDIO]"]
    pieces = [bytes([byte]) for byte in range(256)] + [b"wh", b"at"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    vocab_size = len(special) + len(pieces)
    tekken = {
        "config": {
            "pattern": r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+",
            "default_vocab_size": vocab_size,
            "default_num_special_tokens": len(special),
            "version": "v13",
        },
        "vocab": vocab,
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(special)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(tekken))
    config = VoxtralConfig(
        audio_config={**WHISPER},
        text_config={"model_type": "llama", "vocab_size": vocab_size, **TEXT, "eos_token_id": 2},
        audio_token_id=24,
    )
    randomised(VoxtralForConditionalGeneration(config)).save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=11).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    return folder


def _granite(*, adapter: bool) -> tuple[Any, Any]:
    tokenizer = tokenizer_with("<|audio|>")
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    config = GraniteSpeechConfig(
        encoder_config={
            "input_dim": 160,
            "num_layers": 2,
            "hidden_dim": 32,
            "num_heads": 4,
            "output_dim": 12,
            "context_size": 20,
            "max_pos_emb": 32,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "encoder_hidden_size": 32,
            "vocab_size": 4,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": len(tokenizer),
            **text,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
            "logits_scaling": 4.0,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=adapter,
        tie_word_embeddings=False,
    )
    return tokenizer, GraniteSpeechForConditionalGeneration(config)


def write_granite_speech(folder: Path, *, adapter: bool = False) -> Path:
    tokenizer, model = _granite(adapter=adapter)
    randomised(model).save_pretrained(folder)
    if adapter:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
        randomised(get_peft_model(model, lora), seed=1).save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    GenerationConfig(eos_token_id=ends, pad_token_id=ends[1]).save_pretrained(folder)
    tokenizer.chat_template = TURN
    tokenizer.save_pretrained(folder)
    extractor = {
        "feature_extractor_type": "GraniteSpeechFeatureExtractor",
        "melspec_kwargs": {
            "hop_length": 160,
            "n_fft": 512,
            "n_mels": 80,
            "sample_rate": 16000,
            "win_length": 400,
        },
        "sampling_rate": 16000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder


def write_granite_speech_with_adapter(folder: Path) -> Path:
    return write_granite_speech(folder, adapter=True)


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "qwen2_5_omni": write_qwen2_5_omni,
    "qwen2_5_omni_thinker": write_qwen2_5_omni_thinker,
    "voxtral": write_voxtral,
    "audioflamingo3": write_audioflamingo3,
    "glmasr": write_glmasr,
    "qwen3_asr": write_qwen3_asr,
    "granite_speech": write_granite_speech,
    "granite_speech_with_adapter": write_granite_speech_with_adapter,
}
