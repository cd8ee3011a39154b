"""What SALMONN's encoders need of a clip; needs no weights, and can go to another process as a pickle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor

from lalm.audio import SAMPLE_RATE_HZ
from lalm.errors import EmptyAudioError
from lalm.families.salmonn.fbank import LogMelFbank
from lalm.family import AudioFeatures

FBANK = "fbank"  # in `AudioFeatures.extra`: float32 [num_frames, 128]
MIN_SAMPLES = SAMPLE_RATE_HZ  # a shorter clip gets silence up to 1 s


class SalmonnFeatures:
    """`ModelFamily.features`: Whisper's log-mel of the whole window, and BEATs' filter bank of the clip."""

    def __init__(self, extractor: WhisperFeatureExtractor, num_audio_tokens: int) -> None:
        self._extractor = extractor
        self._num_audio_tokens = num_audio_tokens
        self._fbank = LogMelFbank()
        self.max_audio_s: float = extractor.n_samples / SAMPLE_RATE_HZ

    def __call__(self, waveform: NDArray[np.float32]) -> AudioFeatures:
        """See `ModelFamily`. A clip under 1 s is treated as one of 1 s that ends in silence.

        Raises:
            EmptyAudioError: no samples.
        """
        if waveform.size == 0:
            raise EmptyAudioError("the audio has no samples")
        clip = waveform[: self._extractor.n_samples]
        clip = np.pad(clip, (0, max(0, MIN_SAMPLES - clip.size)))
        mel = self._extractor(clip, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features[0]
        num_frames = -(-clip.size // self._extractor.hop_length)
        return AudioFeatures(mel, num_frames, self._num_audio_tokens, {FBANK: self._fbank(clip)})
