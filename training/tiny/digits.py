"""Digits spoken by people: recordings of the Free Spoken Digit Dataset (CC BY-SA 4.0) as records of the
corpus.

File names say digit, speaker and take: ``7_jackson_32.wav``; 8 kHz. All speakers here are men.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training.tiny.acoustics import degrade
from training.tiny.grammar import DIGITS
from training.tiny.records import Record
from training.tiny.studio import resynthesise
from training.tiny.waves import SAMPLE_RATE_HZ, Wave

VOICE = "fsdd"  # what the names of these records' voices begin with
HELD_OUT_SPEAKER = "theo"
JOINED_SHARE = 0.3  # of the takes that are followed by others of the same speaker, as spoken numbers are
MOVED_TO_WOMEN, MOVED_TO_MEN = 0.45, 0.2  # shares of the takes that are moved to another voice


def write_digits(
    source: Path, folder: Path, wanted: Callable[[str], bool], seed: int, *, clean: bool = False
) -> list[Record]:
    """Write the recordings of the speakers `wanted` into `folder` and return their records.

    Every take makes one recording; a share of them gets one to three more takes of its speaker behind it, and
    a share is moved to the voice of another man or of a woman. `clean` keeps each take as it is, alone.

    Raises:
        FileNotFoundError: there is no such recording in `source`.
    """
    takes = sorted(path for path in source.glob("*_*_*.wav") if wanted(path.stem.split("_")[1]))
    if not takes:
        raise FileNotFoundError(f"{source}: no recording named <digit>_<speaker>_<take>.wav")
    rng = np.random.default_rng([seed, 77])
    words, translations = list(DIGITS), list(DIGITS.values())
    by_speaker: dict[str, list[Path]] = {}
    for path in takes:
        by_speaker.setdefault(path.stem.split("_")[1], []).append(path)
    records = []
    for path in takes:
        speaker = path.stem.split("_")[1]
        chosen = [path]
        if not clean and rng.random() < JOINED_SHARE:
            others = by_speaker[speaker]
            chosen += [others[i] for i in rng.integers(len(others), size=int(rng.integers(1, 4)))]
        digits = [int(take.stem.split("_")[0]) for take in chosen]
        wave, gender = _joined(chosen, rng), "male"
        if not clean:
            wave, gender, speaker = _moved(wave, speaker, rng)
            wave = degrade(wave, rng)
        name = f"audio/fsdd-{path.stem}.flac"
        soundfile.write(folder / name, wave, SAMPLE_RATE_HZ)
        records.append(
            Record(
                path=name,
                transcript=" ".join(words[digit] for digit in digits),
                translation=" ".join(translations[digit] for digit in digits),
                gender=gender,
                speaker=f"fsdd-{speaker}",
                voice=f"{VOICE}/{path.stem.split('_')[1]}",
            )
        )
    return records


def is_spoken_by_people(record: Record) -> bool:
    """Whether a record of the corpus is one of these."""
    return (record.voice or "").startswith(f"{VOICE}/")


def _joined(takes: list[Path], rng: np.random.Generator) -> Wave:
    """Takes one after the other, with pauses of 25 to 156 ms."""
    parts = []
    for take in takes:
        wave, rate = soundfile.read(take, dtype="float32")
        parts += [soxr.resample(wave, rate, SAMPLE_RATE_HZ), np.zeros(int(rng.integers(400, 2500)))]
    return np.concatenate(parts[:-1]).astype(np.float32)


def _moved(wave: Wave, speaker: str, rng: np.random.Generator) -> tuple[Wave, str, str]:
    """The voice as it is or another one, its gender, and the speaker's name.

    All recorded speakers are men; without women among them a recording of a person would mean a man.
    """
    kind = rng.random()
    if kind < MOVED_TO_WOMEN:
        wave = resynthesise(wave, rng.uniform(175, 250), 1.0, tract=rng.uniform(1.14, 1.24))
        return wave, "female", f"{speaker}-f"
    if kind < MOVED_TO_WOMEN + MOVED_TO_MEN:
        return resynthesise(wave, rng.uniform(85, 135), 1.0, tract=1.0), "male", f"{speaker}-m"
    return wave, "male", speaker
