"""Recordings of `PEOPLE` for the corpus, and the manifest of gender that is mostly them.

Virtual men speak at 85 to 135 Hz on average and virtual women at 175 to 250. People are not so far apart: a
lively announcer has 175 Hz, a calm woman 165. So a part of what people say is moved to where both are found,
by the WORLD vocoder, with the formants that they have; a part of all is as short as a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import soundfile

from training.tiny.acoustics import degrade
from training.tiny.people import LENGTH_S, PEOPLE, SHARE, WORD_S, Gender, Person, pieces_of, speak
from training.tiny.records import Record
from training.tiny.studio import resynthesise
from training.tiny.waves import SAMPLE_RATE_HZ, Wave


class Kind(NamedTuple):
    """How a person is recorded, and how often."""

    num_recordings: int
    length_s: tuple[float, float]
    moved: bool


KINDS = {
    "long": Kind(24, LENGTH_S, moved=False),
    "word": Kind(20, WORD_S, moved=False),
    "moved-long": Kind(60, LENGTH_S, moved=True),
    "moved-word": Kind(30, WORD_S, moved=True),
}
MOVED_HZ: dict[Gender, tuple[float, float]] = {"male": (115, 185), "female": (155, 215)}
OTHERS_SHARE = 0.1  # of the manifest


def write_people(
    folder: Path, seed: int, people: Mapping[str, Person] = PEOPLE, share: Path = SHARE
) -> list[Record]:
    """Write recordings of people, degraded, into `folder`, and return their records."""
    records = []
    for name, person in people.items():
        pieces = pieces_of(name, share)
        for kind, (num_recordings, length_s, moved) in KINDS.items():
            rng = Random(f"{seed}-{name}-{kind}")
            noise = np.random.default_rng([seed, *f"{name}-{kind}".encode()])
            for number in range(num_recordings):
                wave = speak(pieces, rng, length_s)
                wave = with_another_pitch(wave, person.gender, rng) if moved else wave
                path = f"audio/{name}-{kind}-{number:03d}.flac"
                soundfile.write(folder / path, degrade(wave, noise), SAMPLE_RATE_HZ)
                records.append(Record(path=path, gender=person.gender, speaker=name, voice=f"people/{name}"))
    return records


def with_another_pitch(wave: Wave, gender: Gender, rng: Random) -> Wave:
    """The same voice at a pitch that men and women have, more or less lively and quick."""
    return resynthesise(
        wave,
        rng.uniform(*MOVED_HZ[gender]),
        2 ** rng.uniform(-0.3, 0.5),
        rate=rng.uniform(0.9, 1.15),
        tract=rng.uniform(0.97, 1.03),
    )


def mostly_people(people: list[Record], others: list[Record], rng: Random) -> list[dict[str, Any]]:
    """Rows of a manifest of gr, shuffled: all of `write_people` and others, `OTHERS_SHARE` of all."""
    known = [record for record in others if record.gender is not None]
    wanted = round(len(people) * OTHERS_SHARE / (1 - OTHERS_SHARE))
    chosen = people + rng.sample(known, min(wanted, len(known)))
    rng.shuffle(chosen)
    return [{"path": record.path, "text": record.gender, "task": "gr"} for record in chosen]
