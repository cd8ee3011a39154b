"""What a recording is while the corpus is made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
SILENCE = 0.01  # of the peak

Wave = NDArray[np.float32]  # [num_samples], mono, at SAMPLE_RATE_HZ


def trimmed(wave: Wave) -> Wave:
    """Without the silence before and behind."""
    loud = np.flatnonzero(np.abs(wave) > SILENCE * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave
