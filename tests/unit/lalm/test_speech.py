from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lalm.audio import decode_audio
from lalm.speech import has_speech, is_audible, split_at_pauses
from tests.spoken_samples import SPOKEN

Waveform = NDArray[np.float32]


def silence(seconds: float) -> Waveform:
    return np.zeros(int(16_000 * seconds), dtype=np.float32)


def noise(level: float, seconds: float = 2.0, *, pink: bool = False) -> Waveform:
    samples = np.random.default_rng(0).standard_normal(int(16_000 * seconds))
    if pink:
        spectrum = np.fft.rfft(samples)
        samples = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1))
    return (level * samples / samples.std()).astype(np.float32)


def click() -> Waveform:
    waveform = silence(2.0)
    waveform[16_000:16_050] = 0.5
    return waveform


NOTHING = {
    "zeros": silence(1.0),
    "a constant": silence(1.0) + np.float32(0.3),
    "one millisecond": silence(0.001),
    "dither": noise(1e-4),
    "white noise": noise(0.01),
    "loud white noise": noise(0.3),
    "pink noise": noise(0.03, pink=True),
    "a click": click(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_there_is_no_speech_in_it(name: str) -> None:
    assert not has_speech(NOTHING[name])


@pytest.mark.parametrize("path", SPOKEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("gain", [1.0, 0.05, 4.0])
def test_there_is_speech_in_every_sample(path: Path, gain: float) -> None:
    waveform = decode_audio(path) * np.float32(gain)
    assert has_speech(waveform)
    assert has_speech(np.concatenate([silence(20.0), waveform, silence(20.0)]))
    assert has_speech(waveform + noise(0.2 * float(waveform.std()), len(waveform) / 16_000)[: len(waveform)])


def test_noise_is_audible_and_zeros_are_not() -> None:
    assert is_audible(noise(0.01))
    assert not is_audible(silence(1.0))


def test_what_is_said_between_pauses_is_a_piece() -> None:
    sentences = [decode_audio(path) for path in SPOKEN[:4]]
    waveform = np.concatenate([part for each in sentences for part in (each, silence(0.6))])
    starts = np.cumsum([0, *(len(each) + 9_600 for each in sentences)])
    spans = split_at_pauses(waveform, max(map(len, sentences)) / 16_000 + 0.4)
    assert len(spans) == 4
    for span, start, sentence in zip(spans, starts, sentences, strict=False):
        assert abs(span.start - start) < 0.3 * 16_000
        assert abs(span.end - (start + len(sentence))) < 0.5 * 16_000


@pytest.mark.parametrize("max_piece_s", [0.5, 1.0, 3.0, 30.0])
def test_pieces_are_in_order_apart_and_short_enough(max_piece_s: float) -> None:
    parts = [part for path in SPOKEN for part in (decode_audio(path), silence(0.1), noise(0.001, 0.2))]
    waveform = np.concatenate(parts)
    spans = split_at_pauses(waveform, max_piece_s)
    assert spans
    assert all(0 < span.end - span.start <= max_piece_s * 16_000 for span in spans)
    assert all(first.end <= second.start for first, second in pairwise(spans))
    assert spans[-1].end <= len(waveform)


def test_a_stretch_without_pause_is_cut_all_the_same() -> None:
    rushed = np.concatenate([decode_audio(path)[3_200:-6_400] for path in SPOKEN])
    spans = split_at_pauses(rushed, 0.7)
    assert all(span.end - span.start <= 0.7 * 16_000 for span in spans)
    assert sum(span.end - span.start for span in spans) > 0.8 * len(rushed)


def test_silence_has_no_piece() -> None:
    assert split_at_pauses(silence(5.0), 1.0) == []
