"""How a model takes the recordings of a task: which channel it hears, and whether two become one clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalm.audio import SAMPLE_RATE_HZ
from lalm.errors import AudioTooLongError

JOIN_SILENCE_S = 0.1


@dataclass(frozen=True)
class AudioInput:
    """What a family wants of recordings, before `features`.

    channel: the channel that is heard, from 0; None for the mean of all.
    joined: the recordings of a task are one clip, `JOIN_SILENCE_S` seconds of silence between them; else each
        is a clip of its own.
    """

    channel: int | None = None
    joined: bool = False

    def clips(
        self, waveforms: Sequence[NDArray[np.float32]], max_audio_s: float
    ) -> list[NDArray[np.float32]]:
        """The clips for `features`, of the recordings of one task, each float32 [num_samples] at 16 kHz.

        Raises:
            AudioTooLongError: the joined recordings are longer than `max_audio_s` seconds.
        """
        if len(waveforms) < 2 or not self.joined:
            return list(waveforms)
        joined = join(waveforms)
        if joined.size > max_audio_s * SAMPLE_RATE_HZ:
            duration_s = joined.size / SAMPLE_RATE_HZ
            message = f"the recordings last {duration_s:.1f} s together; {max_audio_s:g} s are allowed"
            raise AudioTooLongError(message, limit_s=max_audio_s)
        return [joined]


def join(waveforms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """At least one waveform, each float32 [num_samples], one after the other with silence between them."""
    silence = np.zeros(round(JOIN_SILENCE_S * SAMPLE_RATE_HZ), dtype=np.float32)
    parts = [part for waveform in waveforms for part in (silence, waveform)]
    return np.concatenate(parts[1:])
