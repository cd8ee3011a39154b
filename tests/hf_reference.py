"""What transformers makes of a clip and an instruction with the toy models: its processors, its generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

PROCESSORS = {
    "audioflamingo3": "AudioFlamingo3Processor",
    "glmasr": "GlmAsrProcessor",
    "qwen3_asr": "Qwen3ASRProcessor",
}
AUDIO_TOKENS = {
    "audioflamingo3": "<sound>",
    "glmasr": "<|pad|>",
    "qwen3_asr": "<|audio_pad|>",
    "qwen2_5_omni": "<|AUDIO|>",
    "voxtral": "[AUDIO]",
    "granite_speech": "<|audio|>",
}
CLASSES = {
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "glmasr": "GlmAsrForConditionalGeneration",
    "qwen3_asr": "Qwen3ASRForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "voxtral": "VoxtralForConditionalGeneration",
    "granite_speech": "GraniteSpeechForConditionalGeneration",
}


def reference_inputs(name: str, folder: Path, waveform: NDArray[np.float32], prompt: str) -> dict[str, Any]:
    """Inputs of `generate`. prompt: the text with one placeholder."""
    backend = PreTrainedTokenizerFast if name == "voxtral" else AutoTokenizer
    tokenizer = backend.from_pretrained(folder)
    if name == "granite_speech":
        mel, num_tokens = granite_features(waveform)
        is_audio = torch.ones(1, num_tokens, dtype=torch.bool)
        inputs = {"input_features": mel[None], "input_features_mask": is_audio}
    else:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        if name in PROCESSORS:
            tokenizer.audio_token = AUDIO_TOKENS[name]
            tokenizer.audio_bos_token, tokenizer.audio_eos_token = "<|audio_start|>", "<|audio_end|>"
            processor = getattr(transformers, PROCESSORS[name])(
                feature_extractor=extractor,
                tokenizer=tokenizer,
                **({} if name == "qwen3_asr" else {"audio_token": AUDIO_TOKENS[name]}),
            )
            return dict(processor(text=[prompt], audio=[waveform], return_tensors="pt"))
        inputs, num_tokens = whisper_features(name, extractor, waveform)
    text = prompt.replace(AUDIO_TOKENS[name], AUDIO_TOKENS[name] * num_tokens)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def whisper_features(
    name: str, extractor: Any, waveform: NDArray[np.float32]
) -> tuple[dict[str, torch.Tensor], int]:
    """As the processors do that cannot be made here (no torchvision, no mistral-common)."""
    if name == "voxtral":
        inputs = extractor(
            waveform, sampling_rate=16_000, padding=True, truncation=False, pad_to_multiple_of=480_000,
            return_tensors="pt",
        )  # fmt: skip
        return {"input_features": inputs.input_features}, 375
    inputs = extractor(
        waveform, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    num_frames = int(inputs.attention_mask.sum())
    features = {"input_features": inputs.input_features, "feature_attention_mask": inputs.attention_mask}
    return features, (((num_frames - 1) // 2 + 1) - 2) // 2 + 1


def granite_features(waveform: NDArray[np.float32]) -> tuple[torch.Tensor, int]:
    """Granite Speech's log-mel by transformers' NumPy spectrogram, [num_frames, 160], and its tokens."""
    window = np.zeros(512)
    window[56:456] = window_function(400, "hann", periodic=True)
    log_mel = spectrogram(
        waveform.astype(np.float64),
        window,
        frame_length=512,
        hop_length=160,
        fft_length=512,
        power=2.0,
        pad_mode="reflect",
        mel_filters=mel_filter_bank(257, 80, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk"),
        mel_floor=1e-10,
        log_mel="log10",
    ).T
    log_mel = np.maximum(log_mel, log_mel.max() - 8.0) / 4 + 1
    mel = torch.from_numpy(log_mel[: len(log_mel) // 2 * 2].reshape(-1, 160).astype(np.float32))
    return mel, -(-len(mel) // 15) * 3


def plain_model(name: str, folder: Path) -> Any:
    """The model as transformers runs it; an adapter stays beside the weights, and is on."""
    model_class = getattr(transformers, CLASSES[name])
    model = model_class.from_pretrained(folder, adapter_kwargs={"subfolder": "none"})
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder))
    return model.eval()
