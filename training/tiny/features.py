"""The corpus as log-mel arrays and targets, computed once and kept beside it."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from training.tiny.records import Pair, Record, read_pairs, read_records

NUM_MEL_BINS = 128
NATS = 4 * math.log(10)  # of power in one unit of a log-mel: 4 decades, as Whisper scales them
# Shares of the batches. Emotions differ in tempo, speakers in where formants are: many have neither changed.
TEMPO_SHARE, SHIFT_SHARE = 0.45, 0.2
EQUALISED_SHARE = 0.5
SILENCE_SHARE, MAX_SILENCE_FRAMES = 0.2, 250
TIGHT_SHARE, MAX_EDGE_FRAMES = 0.25, 8
MICROPHONE_TILT = 0.075  # at either end of the mel bins, of 40 dB
MICROPHONE_WAVES = (0.04, 1.5), (0.03, 3.0)  # their sizes, and half turns between the middle and either end
LOUD_FROM = 0.25  # from here on, between a clip's quiet and its loud frames, a frame is not an edge


def feature_extractor() -> WhisperFeatureExtractor:
    """The real model's front end: 16 kHz, 128 mel bins, 10 ms hop, 30 s window."""
    return WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=NUM_MEL_BINS, sampling_rate=16_000, chunk_length=30
    )


def log_mel(wave: np.ndarray, extractor: Any) -> np.ndarray:
    """Log-mel spectrogram float16 [num_mel_bins, num_frames] of float32 [num_samples] at 16 kHz.

    extractor: a `feature_extractor`.
    """
    mel = extractor(wave, sampling_rate=16_000, padding=False, return_tensors="np")["input_features"][0]
    return np.asarray(mel, dtype=np.float16)


def _log_mels(paths: list[str]) -> list[np.ndarray]:
    extractor = feature_extractor()
    return [log_mel(soundfile.read(path, dtype="float32")[0], extractor) for path in paths]


@dataclass(frozen=True)
class Corpus:
    """One split: records, their log-mel spectrograms (float16 [num_mel_bins, num_frames] each), speaker
    pairs."""

    records: list[Record]
    mels: list[np.ndarray]
    pairs: list[Pair]

    @classmethod
    def load(cls, folder: Path, workers: int = 2) -> Corpus:
        """Read ``utterances.jsonl`` of ``folder`` and compute (or read back) its log-mels."""
        records = read_records(folder)
        cache = folder / "mels.npz"
        if not cache.exists():
            paths = [str(folder / record.path) for record in records]
            chunks = [paths[i : i + 250] for i in range(0, len(paths), 250)]
            with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                mels = [mel for chunk in pool.map(_log_mels, chunks) for mel in chunk]
            lengths = np.array([mel.shape[1] for mel in mels])
            np.savez(cache, mel=np.concatenate(mels, axis=1), lengths=lengths)
        stored = np.load(cache)
        mels = np.split(stored["mel"], np.cumsum(stored["lengths"])[:-1], axis=1)
        return cls(records, mels, read_pairs(folder))

    def with_more(self, other: Corpus, repeats: int) -> Corpus:
        """This split and another one's recordings, so many times, behind it."""
        records, mels = other.records * repeats, other.mels * repeats
        return Corpus([*self.records, *records], [*self.mels, *mels], self.pairs)

    def part(self, indices: list[int]) -> Corpus:
        """These recordings, without pairs."""
        return Corpus([self.records[i] for i in indices], [self.mels[i] for i in indices], [])

    def batches(self, rng: Random, size: int) -> list[list[int]]:
        """Indices in batches of ``size`` clips of alike length, in random order (a pass over the split)."""
        order = sorted(range(len(self.mels)), key=lambda i: self.mels[i].shape[1] + rng.uniform(-15, 15))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches

    def pad(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Log-mels float32 [batch, num_mel_bins, frames], padded with each clip's floor, and lengths
        [batch]."""
        lengths = torch.tensor([self.mels[i].shape[1] for i in indices])
        longest = int(lengths.max()) // 4 * 4 + 4
        out = torch.empty(len(indices), NUM_MEL_BINS, longest)
        for row, i in zip(out, indices, strict=True):
            mel = torch.from_numpy(self.mels[i]).float()
            row.fill_(float(mel.min()))
            row[:, : mel.shape[1]] = mel
        return out, lengths


def _in_silence(mels: Tensor, lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to 2.5 s of each clip's own background before it and behind it."""
    batch, bins, _ = mels.shape
    before, after = (torch.rand(2, batch, generator=generator) * MAX_SILENCE_FRAMES).long()
    frames = int((before + lengths + after).max()) // 4 * 4 + 4
    out = mels.quantile(0.1, dim=2, keepdim=True).expand(batch, bins, frames).clone()
    for row, (start, length) in enumerate(zip(before.tolist(), lengths.tolist(), strict=True)):
        out[row, :, start : start + length] = mels[row, :, :length]
    return out, before + lengths + after


def sounding_span(mel: Tensor) -> tuple[int, int]:
    """First frame of a log-mel [num_mel_bins, frames] that is not quiet, and the one behind the last."""
    loudness = (mel * NATS).logsumexp(0) / NATS  # [frames], of the power in all bins
    quiet, loud = loudness.quantile(torch.tensor([0.1, 0.9])).tolist()
    sounding = (loudness >= quiet + LOUD_FROM * (loud - quiet)).nonzero()
    return int(sounding[0]), int(sounding[-1]) + 1


def _cut_tightly(mels: Tensor, lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each clip without the quiet before its first sound and behind its last, but for up to 80 ms of it."""
    margins = torch.randint(0, MAX_EDGE_FRAMES + 1, (len(mels), 2), generator=generator).tolist()
    spans = []
    for clip, length, (before, after) in zip(mels, lengths.tolist(), margins, strict=True):
        start, stop = sounding_span(clip[:, :length])
        spans.append((max(0, start - before), min(length, stop + after)))
    kept = torch.tensor([stop - start for start, stop in spans])
    frames = int(kept.max()) // 4 * 4 + 4
    out = mels.amin(2, keepdim=True).expand(*mels.shape[:2], frames).clone()
    for row, clip, (start, stop) in zip(out, mels, spans, strict=True):
        row[:, : stop - start] = clip[:, start:stop]
    return out, kept


@dataclass(frozen=True)
class Changes:
    """What `augment` does to a batch: a tempo for all clips, and the rest as it draws it for each."""

    tempo: float | None = None
    edges: Literal["silence", "tight"] | None = None
    shifted: bool = False
    equalised: bool = False


def draw_changes(generator: torch.Generator) -> Changes:
    """Each in its share of the batches; tempos between 0.85 and 1.2."""
    draws = torch.rand(5, generator=generator).tolist()
    edges: Literal["silence", "tight"] | None = None
    if draws[2] < SILENCE_SHARE + TIGHT_SHARE:
        edges = "silence" if draws[2] < SILENCE_SHARE else "tight"
    return Changes(
        tempo=0.85 + 0.35 * draws[1] if draws[0] < TEMPO_SHARE else None,
        edges=edges,
        shifted=draws[3] < SHIFT_SHARE,
        equalised=draws[4] < EQUALISED_SHARE,
    )


def _response(batch: int, bins: int, generator: torch.Generator) -> Tensor:
    """A microphone's, in units of log-mels, [batch, bins]: a tilt of up to 3 dB at either end and waves."""
    place = torch.linspace(-1, 1, bins)

    def drawn(limit: float) -> Tensor:
        return limit * (2 * torch.rand(batch, 1, generator=generator) - 1)

    waves = [drawn(size) * (math.pi * (turns * place + drawn(1))).cos() for size, turns in MICROPHONE_WAVES]
    return drawn(MICROPHONE_TILT) * place + sum(waves)


def augment(
    mels: Tensor, lengths: Tensor, generator: torch.Generator, changes: Changes | None = None
) -> tuple[Tensor, Tensor]:
    """Change tempo, vocal tract, level, spectral tilt and noise floor of log-mels, mask parts of them, put
    silence around or cut it away.

    changes: drawn where None are given. A shift is of up to two mel bins. One band of up to 20 bins and one
    stretch of up to 15 frames a clip are masked. Takes and returns log-mels float32 [batch, num_mel_bins,
    frames] and lengths [batch].

    Source: SpecAugment (arXiv 1904.08779), section 2, for the masks.
    """
    changes = changes or draw_changes(generator)
    if changes.tempo is not None:
        size = int(mels.shape[2] / changes.tempo) // 4 * 4 + 4
        mels = F.interpolate(mels, size=size, mode="linear", align_corners=False)
        lengths = (lengths / changes.tempo).long().clamp(min=4, max=size)
    if changes.edges == "silence":
        mels, lengths = _in_silence(mels, lengths, generator)
    elif changes.edges == "tight":
        mels, lengths = _cut_tightly(mels, lengths, generator)
    batch, bins, frames = mels.shape
    if changes.shifted:
        shift = torch.randint(-2, 3, (batch,), generator=generator)
        rows = (torch.arange(bins) - shift[:, None]).clamp(0, bins - 1)
        mels = mels.gather(1, rows[:, :, None].expand_as(mels))
    if changes.equalised:
        mels = mels + _response(batch, bins, generator)[:, :, None]

    def span(limit: int, size: Tensor, axis: int) -> Tensor:
        width = torch.randint(0, limit, (batch,), generator=generator)
        start = (torch.rand(batch, generator=generator) * (size - width).clamp(min=1)).long()
        positions = torch.arange(axis)
        return (positions >= start[:, None]) & (positions < (start + width)[:, None])

    floor = mels.amin(dim=(1, 2), keepdim=True)
    mels = torch.where(span(20, torch.full((batch,), bins), bins)[:, :, None], floor, mels)
    mels = torch.where(span(15, lengths, frames)[:, None, :], floor, mels)
    noise = 0.1 * torch.rand(batch, 1, 1, generator=generator) * torch.randn(mels.shape, generator=generator)
    return mels + noise + 0.1 * torch.randn(batch, 1, 1, generator=generator), lengths
