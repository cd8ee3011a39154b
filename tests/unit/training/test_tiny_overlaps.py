"""Overlaps made of log-mels, and the edges of what sounds in them."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from training.tiny.features import Corpus, augment, feature_extractor, log_mel, sounding_span
from training.tiny.mixtures import ONSET_S
from training.tiny.overlaps import overlap, overlapped
from training.tiny.records import Record
from training.tiny.waves import SAMPLE_RATE_HZ, Wave


def tone(hertz: float, before_s: float, sounds_s: float, after_s: float, seed: int = 0) -> Wave:
    """A tone with silence around it and faint noise throughout."""
    rng = np.random.default_rng(seed)
    before, sounding, after = (round(s * SAMPLE_RATE_HZ) for s in (before_s, sounds_s, after_s))
    wave = np.concatenate([np.zeros(before), np.sin(np.arange(sounding) * hertz / 2546.5), np.zeros(after)])
    return np.asarray(0.3 * wave + 1e-3 * rng.standard_normal(len(wave)), dtype=np.float32)


def mel_of(wave: Wave) -> np.ndarray:
    return log_mel(wave, feature_extractor())


def test_what_sounds_begins_behind_the_silence_and_ends_before_it() -> None:
    start, stop = sounding_span(torch.from_numpy(mel_of(tone(600, 0.5, 1.0, 0.3))).float())
    assert abs(start - 50) <= 3
    assert abs(stop - 150) <= 3
    assert sounding_span(torch.zeros(128, 7)) == (0, 7)


def test_an_overlap_is_what_the_log_mel_of_the_added_waves_would_be() -> None:
    first, second = tone(600, 0.4, 1.2, 0.2), tone(1500, 0.2, 1.0, 0.2, seed=1)
    mixed = overlap(mel_of(first), mel_of(second), 0.6, 0.0)  # so the second one's file begins 0.8 s later
    start = round(0.8 * SAMPLE_RATE_HZ)
    added = np.zeros(start + len(second), dtype=np.float32)
    added[: len(first)] += first
    added[start:] += second
    right = mel_of(added)
    assert abs(mixed.shape[1] - right.shape[1]) <= 3
    frames = min(mixed.shape[1], right.shape[1])
    difference = mixed[:, :frames].astype(np.float32) - right[:, :frames].astype(np.float32)
    assert np.abs(difference).mean() < 0.25 * right.astype(np.float32).std()


def test_a_second_speaker_is_louder_by_the_level() -> None:
    first, second = mel_of(tone(600, 0.1, 1.0, 0.1)), mel_of(tone(1500, 0.1, 1.0, 0.1))
    quiet, loud = (overlap(first, second, 0.5, level).astype(np.float32) for level in (-3.0, 3.0))
    alone = slice(125, 155)  # the first one has ended
    assert abs((loud - quiet)[:, alone].max() - 6 / 40) < 0.02


def test_overlaps_are_of_two_speakers_with_nothing_behind_them() -> None:
    mels = [mel_of(tone(300 + 100 * i, 0.2, 1.0 + 0.1 * i, 0.2, seed=i)) for i in range(7)]
    records = [
        Record(path=f"{i}", transcript=f"word {i}", emotion="sad", speaker=f"{i % 2}", gender="male")
        for i in range(4)
    ]
    records.append(Record(path="4", transcript="word", emotion="sad", speaker="x", caption="a bell rings"))
    records.append(Record(path="5", transcript="word", second="other"))
    records.append(Record(path="6", emotion="sad", speaker="y", gender="male"))
    made = overlapped(Corpus(records, mels, []), 30, Random(0))
    assert len(made.records) == len(made.mels) == 30
    for record, mel in zip(made.records, made.mels, strict=True):
        first, second = (records[int(path)] for path in record.path.split("+"))
        assert {first.speaker, second.speaker} == {"0", "1"}
        assert (record.transcript, record.second) == (first.transcript, second.transcript)
        assert record.gender is record.emotion is record.speaker is None
        assert mel.dtype == np.float16
        longest = max(mels[int(path)].shape[1] for path in record.path.split("+"))
        assert longest <= mel.shape[1] <= longest + 100 * ONSET_S[1] + 10
    assert overlapped(Corpus(records[:1] * 3, mels[:3], []), 5, Random(0)).records == []


def test_silence_is_put_around_some_batches_and_cut_away_from_others() -> None:
    corpus = Corpus([], [mel_of(tone(600, 0.6, 0.8, 0.6)), mel_of(tone(600, 0.1, 1.9, 0.1))], [])
    generator = torch.Generator().manual_seed(0)
    seen = [augment(*corpus.pad([0, 1]), generator)[1].tolist() for _ in range(200)]
    tight = sum(first < 120 < second for first, second in seen) / len(seen)
    wide = sum(max(lengths) > 260 for lengths in seen) / len(seen)
    assert 0.15 < tight < 0.35
    assert 0.1 < wide < 0.3
