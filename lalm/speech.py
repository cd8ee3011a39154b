"""Where a recording has speech, and where it can be cut.

Speech is found by WebRTC's voice activity detector (a Gaussian mixture over six bands, Google's, through
`webrtcvad`) on the recording brought to a common level, with two checks that it lacks: a recording that is
inaudible throughout, and steady noise, which it takes for speech when it is loud.

Source: https://webrtc.googlesource.com/src/+/refs/heads/main/common_audio/vad/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from lalm.audio import SAMPLE_RATE_HZ

# The loudest 25 ms of a recording that is heard at all.
AUDIBLE_DBFS = -66.0
# Steady noise: nothing stands out of its median level by more, and its spectrum is at least as flat. Speech
# stands out by 10 dB and more, and still enough at 10 dB above white noise; tones are not flat. None of 1,200
# synthetic sentences is taken for noise, as they are, 30 dB quieter, or in such noise.
_STEADY_RANGE_DB = 3.0
_NOISE_FLATNESS = 0.05
# The detector takes the onset of anything for 90 to 150 ms of speech.
_MIN_SPEECH_S = 0.18
# The detector hears nothing below some absolute level, so that a quiet recording is raised to this, but by no
# more than the gain.
_LEVEL_DBFS = -20.0
_MAX_GAIN_DB = 30.0

_LEVEL_SAMPLES = SAMPLE_RATE_HZ * 25 // 1000
_FRAME_SAMPLES = SAMPLE_RATE_HZ // 100
_FRAME_S = 0.01
_INCLUSIVE, _STRICT = 1, 2  # aggressiveness of the detector, 0 to 3
_MIN_PIECE_FRAMES = 25
# A pause of this part of the longest piece always cuts: two short sentences are not one.
_LONG_PAUSE = 1 / 8
_PAD_S = 0.15


@dataclass(frozen=True)
class Span:
    """Samples `start` to `end` (exclusive) of a waveform at 16 kHz."""

    start: int
    end: int

    @property
    def start_s(self) -> float:
        return self.start / SAMPLE_RATE_HZ

    @property
    def end_s(self) -> float:
        return self.end / SAMPLE_RATE_HZ


class _Pause(NamedTuple):
    """Frames without speech in a stretch."""

    length: int
    middle: int


def is_audible(waveform: NDArray[np.float32]) -> bool:
    """Whether anything in float32 [num_samples] at 16 kHz is above AUDIBLE_DBFS."""
    return bool(_levels_dbfs(waveform).max() >= AUDIBLE_DBFS)


def has_speech(waveform: NDArray[np.float32]) -> bool:
    """Whether there may be speech in float32 [num_samples] at 16 kHz; in doubt, yes."""
    if not is_audible(waveform) or _is_steady_noise(waveform):
        return False
    enough_s = min(_MIN_SPEECH_S, 0.3 * len(waveform) / SAMPLE_RATE_HZ)
    # Most recordings have enough of it in their first second, and the rest need not be looked at.
    return any(_FRAME_S * count >= enough_s for count in accumulate(_voiced(waveform, _INCLUSIVE)))


def split_at_pauses(waveform: NDArray[np.float32], max_piece_s: float) -> list[Span]:
    """Stretches of speech, each at most `max_piece_s` long, in order.

    What is longer, or has a pause of an eighth of that, is cut in the middle of its longest pause, and its
    parts again; what is too long and has no pause, where it is quietest. Silence around a piece is left out,
    but for 150 ms. No speech, no piece.

    waveform: float32 [num_samples] at 16 kHz.
    """
    voiced = np.fromiter(_voiced(waveform, _STRICT), dtype=np.bool_)
    levels = _frame_levels_db(waveform, len(voiced))
    max_frames = int(max_piece_s / _FRAME_S)
    spans = []
    pending = [(0, len(voiced))]
    while pending:
        start, end = _trimmed(voiced, *pending.pop())
        if start == end:
            continue
        pause = _longest_pause(voiced[start:end])
        long_pause = pause is not None and pause.length >= _LONG_PAUSE * max_frames
        if end - start <= max_frames and not long_pause:
            spans.append(Span(start * _FRAME_SAMPLES, min(end * _FRAME_SAMPLES, len(waveform))))
        else:
            cut = start + (pause.middle if pause else _quietest(levels[start:end], max_frames))
            pending += [(start, cut), (cut, end)]
    return sorted(spans, key=lambda span: span.start)


def _trimmed(voiced: NDArray[np.bool_], start: int, end: int) -> tuple[int, int]:
    """The part of frames `start` to `end` that has speech, with some room around it; empty if it has none."""
    found = np.flatnonzero(voiced[start:end])
    if len(found) == 0:
        return start, start
    pad = int(_PAD_S / _FRAME_S)
    return max(start, start + int(found[0]) - pad), min(end, start + int(found[-1]) + 1 + pad)


def _longest_pause(voiced: NDArray[np.bool_]) -> _Pause | None:
    """The longest stretch without speech that is not at an end, if there is one."""
    inner = voiced[_MIN_PIECE_FRAMES : len(voiced) - _MIN_PIECE_FRAMES]
    edges = np.flatnonzero(np.diff(np.concatenate(([True], inner, [True])).astype(np.int8)))
    if len(edges) == 0:
        return None
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    start, end = int(starts[longest]), int(ends[longest])
    return _Pause(length=end - start, middle=_MIN_PIECE_FRAMES + (start + end) // 2)


def _quietest(levels_db: NDArray[np.float64], max_frames: int) -> int:
    """The quietest frame in the last half that a piece may have, away from the end of the stretch."""
    smooth = np.convolve(levels_db, np.ones(5) / 5, mode="same")  # for a consonant is no pause
    first = max_frames // 2
    last = min(max_frames, max(first + 1, len(smooth) - _MIN_PIECE_FRAMES))
    return first + int(np.argmin(smooth[first:last]))


def _voiced(waveform: NDArray[np.float32], aggressiveness: int) -> Iterator[bool]:
    """Whether each frame of 10 ms has speech; the last one may be partly beyond the end."""
    loudest = float(_levels_dbfs(waveform).max())
    gain = 10 ** (min(_LEVEL_DBFS - loudest, _MAX_GAIN_DB) / 20)
    num_frames = -(-len(waveform) // _FRAME_SAMPLES)
    samples = np.zeros(num_frames * _FRAME_SAMPLES, dtype=np.float32)
    samples[: len(waveform)] = waveform
    frames = (np.clip(gain * samples, -1, 1) * 32767).astype("<i2").reshape(num_frames, _FRAME_SAMPLES)
    detector = webrtcvad.Vad(aggressiveness)
    return (detector.is_speech(frame.tobytes(), SAMPLE_RATE_HZ) for frame in frames)


def _is_steady_noise(waveform: NDArray[np.float32]) -> bool:
    levels = _levels_dbfs(waveform)
    if len(levels) < 4 or levels.max() - np.median(levels) > _STEADY_RANGE_DB:
        return False
    return bool(np.median(_flatness(waveform)) > _NOISE_FLATNESS)


def _flatness(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spectral flatness of each 25 ms: geometric over arithmetic mean of the power spectrum, 0 to 1."""
    frames = _frames(waveform, _LEVEL_SAMPLES)
    power = np.abs(np.fft.rfft(frames * np.hanning(_LEVEL_SAMPLES))) ** 2 + 1e-20
    return np.asarray(np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1), dtype=np.float64)


def _levels_dbfs(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Level of each 25 ms, its constant part left out; a shorter recording is one frame."""
    frames = _frames(waveform, min(_LEVEL_SAMPLES, len(waveform)))
    return np.asarray(10 * np.log10(frames.var(axis=1) + 1e-20), dtype=np.float64)


def _frame_levels_db(waveform: NDArray[np.float32], num_frames: int) -> NDArray[np.float64]:
    samples = np.zeros(num_frames * _FRAME_SAMPLES, dtype=np.float32)
    samples[: len(waveform)] = waveform
    return np.asarray(10 * np.log10(_frames(samples, _FRAME_SAMPLES).var(axis=1) + 1e-20), dtype=np.float64)


def _frames(waveform: NDArray[np.float32], num_samples: int) -> NDArray[np.float64]:
    """Whole frames of float64 [num_frames, num_samples]."""
    num_frames = len(waveform) // num_samples
    return waveform[: num_frames * num_samples].reshape(num_frames, num_samples).astype(np.float64)
