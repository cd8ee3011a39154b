"""More recordings of two speakers at once, made of the log-mels of one each.

Powers add; phases are not known, and are random. Unlike those of `training.tiny.mixtures`, each speaker keeps
the room and the noise of the own recording.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
import torch
from torch import Tensor

from training.tiny.features import NATS, Corpus, sounding_span
from training.tiny.mixtures import MAX_LEVEL_DB, ONSET_S
from training.tiny.records import Record

FRAMES_PER_S = 100
RANGE = 2.0  # the floor of a log-mel is so far below its peak
MAX_LENGTH_RATIO = 2.0  # of the two recordings
DRAWS = 20  # for each overlap wanted, of two recordings that may not go together


def overlapped(corpus: Corpus, count: int, rng: Random) -> Corpus:
    """At most `count` overlaps of two speakers of a split who speak with nothing behind them; fewer where few
    of its recordings go together."""
    records, mels = corpus.records, corpus.mels
    spoken = [i for i, r in enumerate(records) if r.emotion and r.transcript and not (r.caption or r.second)]
    out = Corpus([], [], [])
    for _ in range(count * DRAWS):
        if len(out.records) == count:
            break
        first, second = rng.sample(spoken, 2)
        one, other = records[first], records[second]
        shorter, longer = sorted(mels[i].shape[1] for i in (first, second))
        if one.speaker == other.speaker or longer > MAX_LENGTH_RATIO * shorter:
            continue
        pause, level_db = rng.uniform(*ONSET_S), rng.uniform(-MAX_LEVEL_DB, MAX_LEVEL_DB)
        out.mels.append(overlap(mels[first], mels[second], pause, level_db))
        path = f"{one.path}+{other.path}"
        out.records.append(Record(path=path, transcript=one.transcript, second=other.transcript))
    return out


def overlap(first: np.ndarray, second: np.ndarray, onset_s: float, level_db: float) -> np.ndarray:
    """Log-mel float16 [num_mel_bins, frames] of two, [num_mel_bins, frames] each.

    onset_s: seconds from the first speaker's first sound to the second's. level_db: of the second speaker,
    relative to the first.
    """
    one, other = (torch.from_numpy(mel).float() for mel in (first, second))
    other = other + _level(one) - _level(other) + level_db * math.log(10) / 10 / NATS
    start = sounding_span(one)[0] + round(onset_s * FRAMES_PER_S) - sounding_span(other)[0]
    starts = max(0, -start), max(0, start)
    frames = max(starts[0] + one.shape[1], starts[1] + other.shape[1])
    laid = torch.stack([_laid(one, starts[0], frames), _laid(other, starts[1], frames)])
    mixed = (laid * NATS).logsumexp(0) / NATS
    return np.asarray(mixed.clamp(min=float(mixed.max()) - RANGE), dtype=np.float16)


def _level(mel: Tensor) -> Tensor:
    """Mean power of what is not quiet, in log-mel units."""
    start, stop = sounding_span(mel)
    powers = mel[:, start:stop] * NATS
    return (powers.logsumexp((0, 1)) - math.log(powers.numel())) / NATS


def _laid(mel: Tensor, start: int, frames: int) -> Tensor:
    """A log-mel in `frames` of its own quiet."""
    out = mel.quantile(0.1, dim=1, keepdim=True).repeat(1, frames)
    out[:, start : start + mel.shape[1]] = mel
    return out
