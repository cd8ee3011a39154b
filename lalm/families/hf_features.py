"""Log-mel features as the encoders of `lalm.families.hf_models` take them. CPU; safe from any thread.

Each function takes the feature extractor of the checkpoint and a waveform, float32 [num_samples] at 16 kHz
and no longer than the window; it returns the features of the clip and how many of their frames are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from lalm.audio import SAMPLE_RATE_HZ

WINDOW_S = 30
_MARGIN_FRAMES = 2  # how far the convolutions of a Whisper encoder read beyond the clip

Mel = Callable[[Any, NDArray[np.float32]], tuple[Tensor, int]]


def window_mel(extractor: Any, waveform: NDArray[np.float32]) -> tuple[Tensor, int]:
    """[num_mel_bins, 3000]: the clip with silence up to 30 s, which the encoder hears or masks itself."""
    mel = _whisper_mel(extractor, waveform, WINDOW_S * SAMPLE_RATE_HZ // extractor.hop_length)
    return mel, _num_frames(extractor, waveform)


def own_length_mel(extractor: Any, waveform: NDArray[np.float32]) -> tuple[Tensor, int]:
    """[num_mel_bins, num_frames]: the frames of the clip, as they are at the head of a longer window."""
    num_frames = _num_frames(extractor, waveform)
    mel = _whisper_mel(extractor, waveform, num_frames + _MARGIN_FRAMES)
    return mel[:, :num_frames], num_frames


def packed_mel(extractor: Any, waveform: NDArray[np.float32]) -> tuple[Tensor, int]:
    """[num_mel_bins, whole chunks]: the clip alone, filled up with zeros to whole chunks of the encoder."""
    inputs = extractor(
        waveform, sampling_rate=SAMPLE_RATE_HZ, padding=True, return_attention_mask=True, return_tensors="pt"
    )
    return inputs["input_features"][0], int(inputs["attention_mask"].sum())


def _whisper_mel(extractor: Any, waveform: NDArray[np.float32], width: int) -> Tensor:
    mel: Tensor = extractor(
        waveform,
        sampling_rate=SAMPLE_RATE_HZ,
        padding="max_length",
        max_length=width * extractor.hop_length,
        truncation=True,
        return_tensors="pt",
    ).input_features[0]
    return mel


def _num_frames(extractor: Any, waveform: NDArray[np.float32]) -> int:
    return int(-(-waveform.size // extractor.hop_length))


@dataclass(frozen=True)
class GraniteExtractor:
    """Granite Speech's log-mel spectrogram; transformers' own needs torchaudio, of which no build fits.

    Power spectrogram over a periodic Hann window, HTK mel filters without area normalisation, log10 floored
    8 below its maximum, scaled as Whisper does, an odd last frame dropped, two frames side by side.

    Source: Granite-speech (arXiv 2505.08699), and the conventions of `torchaudio.transforms.MelSpectrogram`.
    """

    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 80
    chunk_length: int = WINDOW_S
    sampling_rate: int = SAMPLE_RATE_HZ

    @classmethod
    def from_config(cls, content: Mapping[str, Any]) -> GraniteExtractor:
        """From `preprocessor_config.json`; the keys of `melspec_kwargs` may stand in it or at its top."""
        keys = {**content, **content.get("melspec_kwargs", {})}
        named = {
            key: int(keys[key]) for key in ("n_fft", "win_length", "hop_length", "n_mels") if key in keys
        }
        return cls(**named, sampling_rate=int(keys.get("sampling_rate", SAMPLE_RATE_HZ)))

    @property
    def feature_size(self) -> int:
        """Values of one encoder frame."""
        return 2 * self.n_mels

    def log_mel(self, waveform: NDArray[np.float32]) -> Tensor:
        """float32 [num_frames, 2 * n_mels] of float32 [num_samples]."""
        spectrum = torch.stft(
            torch.from_numpy(waveform),
            self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=torch.hann_window(self.win_length),
            pad_mode="reflect",
            return_complex=True,
        )
        filters = torch.from_numpy(
            mel_filter_bank(
                num_frequency_bins=self.n_fft // 2 + 1,
                num_mel_filters=self.n_mels,
                min_frequency=0.0,
                max_frequency=self.sampling_rate / 2,
                sampling_rate=self.sampling_rate,
                norm=None,
                mel_scale="htk",
            )
        ).float()
        log_mel = (spectrum.abs().square().T @ filters).clamp(min=1e-10).log10()
        log_mel = torch.maximum(log_mel, log_mel.max() - 8.0) / 4 + 1
        return log_mel[: len(log_mel) // 2 * 2].reshape(-1, self.feature_size)


def granite_mel(extractor: GraniteExtractor, waveform: NDArray[np.float32]) -> tuple[Tensor, int]:
    """[num_frames, 2 * n_mels], one encoder frame every 20 ms."""
    mel = extractor.log_mel(waveform)
    return mel, len(mel)
