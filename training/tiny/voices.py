"""Virtual speakers: espeak-ng and flite voices with drawn vocal tract, pitch and emotion, to 16 kHz mono.

espeak-ng speaks through a variant file written for each speaker (formants and pitch range scaled by the
speaker's gender); flite voices are moved between speakers by resampling (pitch and vocal tract together) with
the duration compensated. Emotion acts on pitch, pitch range, rate, loudness and spectral tilt.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import lfilter

from training.tiny.grammar import Split

SAMPLE_RATE_HZ = 16_000
Gender = Literal["male", "female"]
GENDERS: tuple[Gender, ...] = ("male", "female")
EMOTIONS = ("angry", "happy", "neutral", "sad")

# Whole voices are kept for evaluation: no test speaker shares an engine voice with training. flite's voices
# stand with their native gender and mean pitch in Hz (its "rms" ignores pitch targets and cannot be moved
# between speakers).
ESPEAK: dict[Split, tuple[str, ...]] = {
    "train": ("en-us", "en-gb", "en-gb-x-rp", "en-us-nyc", "en-029"),
    "dev": ("en-gb-x-gbcwmd",),
    "test": ("en-gb-scotland",),
}
FLITE: dict[Split, tuple[tuple[str, Gender], ...]] = {
    "train": (("awb", "male"), ("slt", "female")),
    "dev": (("awb", "male"), ("slt", "female")),
    "test": (("kal16", "male"),),
}


@dataclass(frozen=True)
class Speaker:
    """A virtual speaker; ``tract`` scales formants (1 = the engine voice's own), pitch in Hz."""

    name: str
    engine: Literal["espeak", "flite"]
    voice: str
    gender: Gender
    pitch_hz: float
    tract: float
    rate: float


@dataclass(frozen=True)
class Prosody:
    """How an emotion changes a speaker: factors on pitch, pitch range and rate, gain in dB, tilt
    coefficient."""

    pitch: float
    spread: float
    rate: float
    gain_db: float
    tilt: float


def draw_speaker(rng: Random, name: str, split: Split) -> Speaker:
    """Draw a speaker of ``split``: male and female alike often, about half of them from each engine."""
    gender = rng.choice(GENDERS)
    pitch_hz = rng.uniform(85, 135) if gender == "male" else rng.uniform(175, 250)
    rate = rng.uniform(0.9, 1.15)
    if rng.random() < 0.5:
        voice = rng.choice(ESPEAK[split])
        tract = rng.uniform(0.90, 1.02) if gender == "male" else rng.uniform(1.10, 1.22)
        return Speaker(name, "espeak", voice, gender, pitch_hz, tract, rate)
    voice, native = rng.choice(FLITE[split])
    if gender == native:
        tract = rng.uniform(0.95, 1.05)
    else:
        tract = rng.uniform(1.14, 1.24) if gender == "female" else rng.uniform(0.80, 0.87)
    return Speaker(name, "flite", voice, gender, pitch_hz, tract, rate)


def draw_prosody(rng: Random, emotion: str) -> Prosody:
    """Draw how this utterance expresses ``emotion``."""
    u = rng.uniform
    match emotion:
        case "angry":
            return Prosody(u(1.02, 1.12), u(1.3, 1.7), u(1.18, 1.32), u(4, 8), u(0.30, 0.5))
        case "happy":
            return Prosody(u(1.18, 1.32), u(2.2, 3.0), u(1.02, 1.12), u(0, 4), u(0.0, 0.15))
        case "sad":
            return Prosody(u(0.84, 0.92), u(0.2, 0.45), u(0.70, 0.82), u(-9, -4), u(-0.5, -0.3))
        case _:
            return Prosody(u(0.97, 1.03), u(0.9, 1.1), u(0.96, 1.04), u(-2, 2), u(-0.1, 0.1))


class Studio:
    """Speaks to arrays through the espeak-ng and flite commands, with scratch files in ``folder``.

    Raises:
        FileNotFoundError: when espeak-ng or flite are not installed.
    """

    def __init__(self, folder: Path) -> None:
        for command in ("espeak-ng", "flite"):
            if shutil.which(command) is None:
                raise FileNotFoundError(f"{command} is not installed: apt-get install espeak-ng flite")
        self._wav = folder / "speech.wav"
        self._data = folder / "espeak-ng-data"
        version = subprocess.run(
            ["espeak-ng", "--version"], capture_output=True, text=True, check=True
        ).stdout
        shutil.copytree(Path(version.rpartition("Data at: ")[2].strip()), self._data, dirs_exist_ok=True)

    def speak(self, text: str, speaker: Speaker, prosody: Prosody) -> NDArray[np.float32]:
        """Waveform float32 [num_samples], 16 kHz, peak-normalised and then scaled by the prosody's gain."""
        speak = self._espeak if speaker.engine == "espeak" else self._flite
        wave = speak(text, speaker, prosody)
        wave = np.asarray(lfilter([1.0, -prosody.tilt], [1.0], wave), dtype=np.float32)
        voiced = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
        wave = wave[voiced[0] : voiced[-1] + 1]
        scaled = wave * (0.25 * 10 ** (prosody.gain_db / 20) / np.abs(wave).max())
        return np.asarray(scaled, dtype=np.float32)

    def _espeak(self, text: str, speaker: Speaker, prosody: Prosody) -> NDArray[np.float32]:
        pitch = speaker.pitch_hz * prosody.pitch
        spread = 0.22 * pitch * prosody.spread
        percent = round(100 * speaker.tract)
        lines = [f"pitch {pitch - spread / 2:.0f} {pitch + spread / 2:.0f}"]
        lines += [f"formant {n} {percent} 100 100" for n in range(1, 9)]
        variant = self._data / "voices" / "!v" / "drawn"
        variant.write_text("language variant\nname drawn\n" + "\n".join(lines) + "\n")
        words_per_minute = round(165 * speaker.rate * prosody.rate)
        voice = ["-v", f"{speaker.voice}+drawn", "-s", str(words_per_minute)]
        self._run(["espeak-ng", f"--path={self._data.parent}", *voice, "-w", str(self._wav), text])
        return self._read(1.0)

    def _flite(self, text: str, speaker: Speaker, prosody: Prosody) -> NDArray[np.float32]:
        pitch = speaker.pitch_hz * prosody.pitch / speaker.tract
        features = {
            "int_f0_target_mean": pitch,
            "int_f0_target_stddev": 12 * prosody.spread * pitch / 110,
            "duration_stretch": speaker.tract / (speaker.rate * prosody.rate),
        }
        settings = [part for key, value in features.items() for part in ("--setf", f"{key}={value:.3f}")]
        self._run(["flite", "-voice", speaker.voice, "-t", text, "-o", str(self._wav), *settings])
        return self._read(speaker.tract)

    def _run(self, command: list[str]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _read(self, speed: float) -> NDArray[np.float32]:
        wave, rate = soundfile.read(self._wav, dtype="float32")
        return np.asarray(soxr.resample(wave, rate * speed, SAMPLE_RATE_HZ), dtype=np.float32)
