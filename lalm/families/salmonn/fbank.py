"""The features of BEATs: Kaldi's log-mel filter bank, in float64.

In float32, as in kaldi-native-fbank, bins far below the loudest of their frame are off by up to 6e-4 after
normalisation (1.20; 2e-3 in 1.21 and 1.22), which BEATs makes 1.6e-4 (5e-4) of the reference's numbers, where
1e-4 is allowed; and some of 128 mel bins are narrower than the lines of the spectrum, which it refuses since
1.23. So only the window and the filters come from a library.

Source: BEATs (arXiv 2212.09058), "Backbone": 128 mel bins, a 25 ms Povey window each 10 ms; mean and standard
deviation are those of AudioSet, as in the published code.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, window_function

from lalm.audio import SAMPLE_RATE_HZ

NUM_BINS = 128
MEAN = 15.41663
STD = 6.55582

_FRAME, _HOP, _FFT = 400, 160, 512
_PREEMPHASIS = 0.97
_INT16_SCALE = 2.0**15
_FLOOR = 1.1920928955078125e-07  # of a float32, as in Kaldi


class LogMelFbank:
    """Computes features; safe from any thread."""

    def __init__(self) -> None:
        self._window = torch.from_numpy(window_function(_FRAME, "povey", periodic=False))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
            filters = mel_filter_bank(
                num_frequency_bins=_FFT // 2 + 1,
                num_mel_filters=NUM_BINS,
                min_frequency=20.0,
                max_frequency=SAMPLE_RATE_HZ / 2,
                sampling_rate=SAMPLE_RATE_HZ,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )
        self._filters = torch.from_numpy(filters)

    def __call__(self, waveform: NDArray[np.float32]) -> Tensor:
        """Normalised features, float32 [num_frames, 128], of [num_samples] at 16 kHz within [-1, 1].

        Frames that the waveform does not fill are left out: 1 + (num_samples - 400) // 160 of them are whole.
        """
        frames = torch.from_numpy(waveform).double().mul(_INT16_SCALE).unfold(0, _FRAME, _HOP)
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * self._window, n=_FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = (power @ self._filters).clamp(min=_FLOOR).log()
        normalised: Tensor = (log_mel - MEAN) / (2 * STD)
        return normalised.float()
