"""What a recording is while the corpus is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
SILENCE = 0.01  # of the peak

Wave = NDArray[np.float32]  # [num_samples], mono, at SAMPLE_RATE_HZ


def read_wave(path: Path) -> Wave:
    """A recording as float32 [num_samples] at 16 kHz; of several channels the mean."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(wave.mean(1), rate, SAMPLE_RATE_HZ), dtype=np.float32)


def trimmed(wave: Wave) -> Wave:
    """Without the silence before and behind."""
    loud = np.flatnonzero(np.abs(wave) > SILENCE * np.abs(wave).max(initial=0.0))
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave
