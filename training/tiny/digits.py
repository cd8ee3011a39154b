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
from training.tiny.studio import SAMPLE_RATE_HZ

HELD_OUT_SPEAKER = "theo"
JOINED_SHARE = 0.3  # of the takes that are followed by others of the same speaker, as spoken numbers are


def write_digits(
    source: Path, folder: Path, wanted: Callable[[str], bool], seed: int, *, clean: bool = False
) -> list[Record]:
    """Write the recordings of the speakers `wanted` into `folder` and return their records.

    Every take makes one recording; a share of them gets one to three more takes of its speaker behind it.
    `clean` keeps each take as it is, alone.

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
        parts = []
        for take in chosen:
            wave, rate = soundfile.read(take, dtype="float32")
            parts += [soxr.resample(wave, rate, SAMPLE_RATE_HZ), np.zeros(int(rng.integers(400, 2500)))]
        wave = np.concatenate(parts[:-1]).astype(np.float32)
        name = f"audio/fsdd-{path.stem}.flac"
        soundfile.write(folder / name, wave if clean else degrade(wave, rng), SAMPLE_RATE_HZ)
        records.append(
            Record(
                path=name,
                transcript=" ".join(words[digit] for digit in digits),
                translation=" ".join(translations[digit] for digit in digits),
                gender="male",
                speaker=f"fsdd-{speaker}",
                voice=f"fsdd/{speaker}",
            )
        )
    return records
