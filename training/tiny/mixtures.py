"""Recordings that are more than one clean voice: sound scenes, speech over sound, two speakers at once.

Waveforms are float32 [num_samples] at 16 kHz; captions are made of the clauses in `training.tiny.sounds`.
"""

from __future__ import annotations

from random import Random

import numpy as np

from training.tiny.sounds import EVENTS, STEADY, make_event
from training.tiny.waves import SAMPLE_RATE_HZ, Wave

ONSET_S = 0.4, 0.9  # of the second of two speakers, after the first
MAX_LEVEL_DB = 3.0  # between them
SPEAKS = {"male": "a man speaks", "female": "a woman speaks"}


def loudness(wave: Wave) -> float:
    """Root mean square of the samples."""
    return float(np.sqrt(np.mean(wave**2))) + 1e-9


def overlay(front: Wave, behind: Wave, level_db: float) -> Wave:
    """`behind` repeated or cut to the length of `front`, `level_db` relative to it, faded in and out."""
    repeats = -(-len(front) // len(behind))
    bed = np.tile(behind, repeats)[: len(front)] * (loudness(front) / loudness(behind))
    fade = np.minimum(1, np.minimum(np.arange(len(bed)), np.arange(len(bed))[::-1]) / 800)
    return np.asarray(front + bed * fade * 10 ** (level_db / 20), dtype=np.float32)


def scene(rng: Random, noise: np.random.Generator) -> tuple[Wave, str, tuple[str, ...]]:
    """One event, two in turn, or one before a steady one: waveform, caption, names of the events."""
    name = rng.choice(list(EVENTS))
    kind = rng.random()
    if kind < 0.45:
        return make_event(name, noise), EVENTS[name][1], (name,)
    others = [other for other in (EVENTS if kind < 0.75 else STEADY) if other != name]
    other = rng.choice(others)
    first, second = make_event(name, noise), make_event(other, noise)
    if kind < 0.75:
        gap = np.zeros(int(noise.uniform(0.1, 0.4) * SAMPLE_RATE_HZ), dtype=np.float32)
        return (
            np.concatenate([first, gap, second]),
            f"{EVENTS[name][1]} and then {EVENTS[other][1]}",
            (name, other),
        )
    mixed = overlay(first, second, rng.uniform(-9, -3))
    return mixed, f"{EVENTS[name][1]} while {EVENTS[other][1]}", (name, other)


def speech_over(
    speech: Wave, gender: str, rng: Random, noise: np.random.Generator
) -> tuple[Wave, str, tuple[str, ...]]:
    """Speech with a sound behind it: waveform, caption, name of the sound."""
    name = rng.choice(list(EVENTS))
    mixed = overlay(speech, make_event(name, noise), rng.uniform(-16, -6))
    return mixed, f"{SPEAKS[gender]} while {EVENTS[name][1]}", (name,)


def overlap(first: Wave, second: Wave, rng: Random) -> Wave:
    """Two speakers, about alike loud, the second beginning `ONSET_S` after the first."""
    start = int(rng.uniform(*ONSET_S) * SAMPLE_RATE_HZ)
    level_db = rng.uniform(-MAX_LEVEL_DB, MAX_LEVEL_DB)
    second = second * (loudness(first) / loudness(second) * 10 ** (level_db / 20))
    out = np.zeros(max(len(first), start + len(second)), dtype=np.float32)
    out[: len(first)] += first
    out[start : start + len(second)] += second
    return out
