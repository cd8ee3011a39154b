"""How many audio tokens examples will take, from the headers of their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from lalm.audio import SAMPLE_RATE_HZ
from lalm.family import ModelFamily
from training.manifest import Example

PROBE_S = 4


class EstimatedLengths:
    """Estimated audio tokens by index; each is looked up once, when it is asked for."""

    def __init__(self, family: ModelFamily, examples: Sequence[Example]) -> None:
        self._family = family
        self._examples = examples
        self._tokens_per_s: float | None = None
        self._known: dict[int, int] = {}

    def __getitem__(self, index: int) -> int:
        if index not in self._known:
            if self._tokens_per_s is None:
                silence = np.zeros(PROBE_S * SAMPLE_RATE_HZ, dtype=np.float32)
                self._tokens_per_s = self._family.features(silence).num_audio_tokens / PROBE_S
            files = [file for part in self._examples[index].recordings for file in part]
            self._known[index] = round(sum(map(_duration_s, files)) * self._tokens_per_s)
        return self._known[index]


def _duration_s(file: Path) -> float:
    """Seconds of a recording as its header has them, 0 where libsndfile does not know the format."""
    try:
        return float(soundfile.info(str(file)).duration)
    except soundfile.LibsndfileError:
        return 0.0
