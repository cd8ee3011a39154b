"""Virtual speakers of one synthesis voice: what tells them apart, and batches in which they meet.

Left to itself, the encoder tells synthesis voices and genders apart, and takes two speakers of one voice and
gender for one. What differs between those is what they were drawn with, so it learns that by name, and to
compare such speakers in batches that have several of each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from itertools import chain
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

from training.tiny.features import Changes, Corpus
from training.tiny.records import Group, Pair, Record, Traits

NAMES = [field.name for field in fields(Traits)]
NUM_TRAITS = len(NAMES)
TRACT, RATES = NAMES.index("tract"), [NAMES.index("rate"), NAMES.index("spoken_rate")]
UNKNOWN = torch.full((NUM_TRAITS,), math.nan)
MIN_SPREAD = 1e-3
NUM_TWINS = 4  # speakers of one voice and gender in a batch
NUM_OTHERS = 2  # of their gender with another voice, and as many of the other gender
CLIPS_PER_SPEAKER = 4
ALIKE = 8  # of a speaker's clips the nearest in length, which these are drawn from
TWIN_SHARE = 0.55  # of the pairs of two speakers

T = TypeVar("T")


class TraitScale:
    """Traits as an encoder learns them: logarithms, relative to the speakers of their voice and gender."""

    def __init__(self, records: Iterable[Record]) -> None:
        known: dict[Group, list[Tensor]] = defaultdict(list)
        for record in records:
            if record.traits is not None:
                known[record.group].append(_logarithms(record.traits))
        self._means = {group: torch.stack(rows).mean(0) for group, rows in known.items()}
        apart = [row - self._means[group] for group, rows in known.items() for row in rows]
        self._spread = torch.stack(apart).std(0, correction=0).clamp(min=MIN_SPREAD) if apart else UNKNOWN

    def targets(self, records: list[Record], changes: Changes) -> Tensor:
        """Of mean 0 and variance 1 over the recordings of the scale, float32 [records, NUM_TRAITS]; nan where
        a recording has no traits, its voice was not in the scale, or `changes` leave nothing of them."""
        targets = UNKNOWN.repeat(len(records), 1)
        for row, record in zip(targets, records, strict=True):
            if record.traits is not None and record.group in self._means:
                row[:] = (_logarithms(record.traits) - self._means[record.group]) / self._spread
        if changes.tempo is not None:
            targets[:, RATES] = math.nan
        if changes.shifted:
            targets[:, TRACT] = math.nan
        return targets


def _logarithms(traits: Traits) -> Tensor:
    return torch.tensor(astuple(traits)).log()


def _sample(rng: Random, values: list[T], count: int) -> list[T]:
    """So many of them, or all."""
    return rng.sample(values, min(count, len(values)))


@dataclass(frozen=True)
class SpeakerBatch:
    """Clips of a split by index, and pairs of them by their positions in `clips`."""

    clips: list[int]
    pairs: list[Pair]


class SpeakerBatches:
    """Draws batches of few speakers with several clips each, of alike lengths: some of one voice and gender,
    others of others."""

    def __init__(self, corpus: Corpus, rng: Random) -> None:
        self._rng = rng
        self._lengths = [mel.shape[1] for mel in corpus.mels]
        clips: dict[tuple[Group, str], list[int]] = defaultdict(list)
        for index, record in enumerate(corpus.records):
            if record.is_virtual_speaker and record.speaker is not None:
                clips[record.group, record.speaker].append(index)
        self._clips = {speaker: indices for speaker, indices in clips.items() if len(indices) > 1}

    def __bool__(self) -> bool:
        """Whether there are two speakers to compare."""
        return len(self._clips) > 1

    def some_of_each(self, count: int) -> list[int]:
        """Up to `count` clips of each speaker."""
        return [clip for clips in self._clips.values() for clip in _sample(self._rng, clips, count)]

    def draw(self, num_pairs: int) -> SpeakerBatch:
        """A batch and about `num_pairs` pairs of it: half of one speaker; of the others, `TWIN_SHARE` of one
        voice and gender."""
        rng = self._rng
        first = rng.choice(list(self._clips))
        near = self._lengths[rng.choice(self._clips[first])]
        kinds: tuple[list[tuple[Group, str]], ...] = ([], [], [])
        for speaker in self._clips:
            group, gender = speaker[0], speaker[0][1]
            kinds[0 if group == first[0] else 1 if gender == first[0][1] else 2].append(speaker)
        counts = NUM_TWINS, NUM_OTHERS, NUM_OTHERS
        speakers = [_sample(rng, kind, count) for kind, count in zip(kinds, counts, strict=True)]
        owners, clips = [], []
        for speaker in chain.from_iterable(speakers):
            alike = sorted(self._clips[speaker], key=lambda i: abs(self._lengths[i] - near))[:ALIKE]
            drawn = _sample(rng, alike, CLIPS_PER_SPEAKER)
            clips += drawn
            owners += [speaker] * len(drawn)
        return SpeakerBatch(clips, self._pairs(owners, num_pairs))

    def _pairs(self, owners: list[tuple[Group, str]], count: int) -> list[Pair]:
        """Of the positions of `owners`, in random order."""
        same: list[Pair] = []
        twins: list[Pair] = []
        others: list[Pair] = []
        for first, one in enumerate(owners):
            for second, other in enumerate(owners):
                kind = same if one == other else twins if one[0] == other[0] else others
                if first != second:
                    kind.append(Pair(first, second, same=one == other))
        num_twins = round(TWIN_SHARE * count / 2)
        wanted = (same, count // 2), (twins, num_twins), (others, count // 2 - num_twins)
        pairs = [pair for kind, number in wanted for pair in _sample(self._rng, kind, number)]
        self._rng.shuffle(pairs)
        return pairs
