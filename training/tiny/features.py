"""The corpus as log-mel arrays and targets, computed once and kept beside it."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

Records = list[dict[str, str]]
NUM_MEL_BINS = 128


def feature_extractor() -> WhisperFeatureExtractor:
    """The real model's front end: 16 kHz, 128 mel bins, 10 ms hop, 30 s window."""
    return WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=NUM_MEL_BINS, sampling_rate=16_000, chunk_length=30
    )


def _log_mel(paths: list[str]) -> list[np.ndarray]:
    extractor: Any = feature_extractor()
    mels = []
    for path in paths:
        wave, _ = soundfile.read(path, dtype="float32")
        mel = extractor(wave, sampling_rate=16_000, padding=False, return_tensors="np")["input_features"][0]
        mels.append(mel.astype(np.float16))
    return mels


@dataclass(frozen=True)
class Corpus:
    """One split: records and log-mel spectrograms, float16 [num_mel_bins, num_frames] each."""

    records: Records
    mels: list[np.ndarray]

    @classmethod
    def load(cls, folder: Path, workers: int = 2) -> Corpus:
        """Read ``utterances.jsonl`` of ``folder`` and compute (or read back) its log-mels."""
        records: Records = [json.loads(line) for line in (folder / "utterances.jsonl").open()]
        cache = folder / "mels.npz"
        if not cache.exists():
            paths = [str(folder / record["path"]) for record in records]
            chunks = [paths[i : i + 250] for i in range(0, len(paths), 250)]
            with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                mels = [mel for chunk in pool.map(_log_mel, chunks) for mel in chunk]
            lengths = np.array([mel.shape[1] for mel in mels])
            np.savez(cache, mel=np.concatenate(mels, axis=1), lengths=lengths)
        stored = np.load(cache)
        return cls(records, np.split(stored["mel"], np.cumsum(stored["lengths"])[:-1], axis=1))

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


def spec_augment(mels: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Mask one band of up to 20 mel bins and one stretch of up to 15 frames a clip, and shift the level a
    little.

    Source: SpecAugment (arXiv 1904.08779), section 2.
    """
    batch, bins, frames = mels.shape

    def span(limit: int, size: Tensor) -> Tensor:
        width = torch.randint(0, limit, (batch,), generator=generator)
        start = (torch.rand(batch, generator=generator) * (size - width).clamp(min=1)).long()
        positions = torch.arange(bins if limit > 15 else frames)
        return (positions >= start[:, None]) & (positions < (start + width)[:, None])

    floor = mels.amin(dim=(1, 2), keepdim=True)
    mels = torch.where(span(20, torch.full((batch,), bins))[:, :, None], floor, mels)
    mels = torch.where(span(15, lengths)[:, None, :], floor, mels)
    return mels + 0.1 * torch.randn(batch, 1, 1, generator=generator)
