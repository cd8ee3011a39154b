"""What `lalm.families.hf` has to know of each model: a few lines a model, in `MODELS`.

`docs/families.md` is this table for people, with the models that are not in it and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lalm.families.hf_features import Mel, granite_mel, own_length_mel, packed_mel, window_mel
from lalm.families.hf_prompts import Prompt, chat, mistral_chat, string_chat, system_chat

NumTokens = Callable[[int, Any], int]


@dataclass(frozen=True)
class HfModel:
    """One model of transformers that hears.

    family: name in mask files.
    class_name: the class in transformers; it has `get_audio_features`, `get_decoder` and an output embedding.
    mel: what the encoder takes of a waveform, and how many frames of it are the clip's.
    num_tokens: positions in the decoder for a number of frames, given the configuration.
    mask_name: the argument of `get_audio_features` that tells the clip's frames from padding, if it has one.
    one_pass: clips of a batch are encoded together, which needs equal widths and rows that do not meet.
    prompt: the text around the audios.
    part: the part of a larger configuration that is loaded; its weights have the same prefix.
    """

    family: str
    class_name: str
    mel: Mel
    num_tokens: NumTokens
    mask_name: str | None = "input_features_mask"
    one_pass: bool = False
    prompt: Prompt = chat
    part: str | None = None


def _halved_twice(num_frames: int, _: Any) -> int:
    """A convolution of stride 2, then pooling by 2: the Whisper encoder with Qwen2-Audio's pooling."""
    return ((num_frames - 1) // 2 + 1) // 2


def _merged_by_four(num_frames: int, _: Any) -> int:
    """A convolution of stride 2, then four positions side by side."""
    return ((num_frames - 1) // 2 + 1) // 4


def _whole_window(_: int, config: Any) -> int:
    """Silence behind the clip is heard as well; positions lie side by side until they fill the projector."""
    audio = config.audio_config
    return int(audio.max_source_positions * audio.hidden_size // audio.intermediate_size)


def _chunks_of_a_second(num_frames: int, config: Any) -> int:
    """Three convolutions of stride 2 over each chunk of `2 * n_window` frames."""
    chunk: int = 2 * config.audio_config.n_window
    return num_frames // chunk * _thrice_halved(chunk) + _thrice_halved(num_frames % chunk)


def _thrice_halved(num_frames: int) -> int:
    return -(-num_frames // 8)


def _queries_a_window(num_frames: int, config: Any) -> int:
    """A window of encoder frames, the last one filled up, becomes a fixed number of queries."""
    window: int = config.window_size
    return -(-num_frames // window) * (window // int(config.downsample_rate))


_QWEN2_5_OMNI_THINKER = HfModel(
    family="qwen2_5_omni",
    class_name="Qwen2_5OmniThinkerForConditionalGeneration",
    mel=own_length_mel,
    num_tokens=_halved_twice,
    mask_name="feature_attention_mask",
)

MODELS: Mapping[str, HfModel] = {
    "qwen2_5_omni": replace(_QWEN2_5_OMNI_THINKER, part="thinker"),
    "qwen2_5_omni_thinker": _QWEN2_5_OMNI_THINKER,
    "voxtral": HfModel(
        family="voxtral",
        class_name="VoxtralForConditionalGeneration",
        mel=window_mel,
        num_tokens=_whole_window,
        mask_name=None,
        one_pass=True,
        prompt=mistral_chat,
    ),
    "audioflamingo3": HfModel(
        family="audioflamingo3",
        class_name="AudioFlamingo3ForConditionalGeneration",
        mel=window_mel,
        num_tokens=_halved_twice,
        one_pass=True,
    ),
    "glmasr": HfModel(
        family="glmasr",
        class_name="GlmAsrForConditionalGeneration",
        mel=window_mel,
        num_tokens=_merged_by_four,
        one_pass=True,
    ),
    "qwen3_asr": HfModel(
        family="qwen3_asr",
        class_name="Qwen3ASRForConditionalGeneration",
        mel=packed_mel,
        num_tokens=_chunks_of_a_second,
        prompt=system_chat,
    ),
    "granite_speech": HfModel(
        family="granite_speech",
        class_name="GraniteSpeechForConditionalGeneration",
        mel=granite_mel,
        num_tokens=_queries_a_window,
        mask_name=None,
        prompt=string_chat,
    ),
}
