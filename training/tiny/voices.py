"""Virtual speakers and how emotions change them: what is drawn before anything is spoken.

A speaker is a voice of one of five synthesis engines with a drawn vocal tract, pitch and rate; most engine
voices lend themselves to speakers of both genders. Most speakers to train with have a timbre and a liveliness
of their own. Voices of other languages read English by their own rules: they say no words, but have a gender,
an emotion and somebody who speaks. So do recordings of people, but for emotions. An emotion acts on pitch,
pitch range, rate, loudness and spectral tilt. `training.tiny.studio` speaks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from training.tiny.grammar import Split
from training.tiny.people import PEOPLE, Gender

Engine = Literal["espeak", "flite", "pico", "piper", "festival", "people"]
GENDERS: tuple[Gender, ...] = ("male", "female")
OTHER_GENDER_SHARE = 0.3
PEOPLE_WEIGHT = 4.2  # of all voices of people together, beside those of the engines
EMOTIONS = ("angry", "happy", "neutral", "sad")


@dataclass(frozen=True)
class Voice:
    """A voice as its engine names it; espeak-ng's have no gender of their own (formants are set a
    speaker)."""

    engine: Engine
    name: str
    gender: Gender | None = None
    english: bool = True

    @property
    def has_emotions(self) -> bool:
        """Whether it is known how it speaks before its speakers' emotions are added."""
        return self.engine != "people"


# Whole voices are kept for evaluation: no speaker of dev or test shares an engine voice with training. The
# weights say how often a voice is drawn: the slow engines (Piper, Pico) more seldom than the quick ones.
VOICES: dict[Split, dict[Voice, float]] = {
    "train": {
        Voice("espeak", "en-us"): 2.5,
        Voice("espeak", "en-gb"): 1.5,
        Voice("espeak", "en-gb-x-rp"): 1.5,
        Voice("espeak", "en-us-nyc"): 1.5,
        Voice("espeak", "en-gb-scotland"): 1.5,
        Voice("espeak", "en-029"): 1.0,
        Voice("flite", "awb", "male"): 3.5,
        Voice("flite", "rms", "male"): 3.0,
        Voice("flite", "slt", "female"): 3.5,
        Voice("flite", "kal16", "male"): 2.5,
        Voice("pico", "en-US", "female"): 2.0,
        Voice("pico", "en-GB", "female"): 2.0,
        Voice("piper", "en_US-joe-medium", "male"): 2.5,
        Voice("pico", "de-DE", "female", english=False): 0.5,
        Voice("pico", "es-ES", "female", english=False): 0.5,
        Voice("pico", "fr-FR", "female", english=False): 0.5,
        Voice("pico", "it-IT", "female", english=False): 0.5,
        Voice("festival", "czech_dita", "female", english=False): 0.5,
        Voice("festival", "czech_machac", "male", english=False): 0.5,
        Voice("festival", "czech_ph", "male", english=False): 0.5,
        Voice("festival", "hy_fi_mv_diphone", "male", english=False): 0.5,
        Voice("festival", "suo_fi_lj_diphone", "female", english=False): 0.5,
        Voice("festival", "lp_diphone", "female", english=False): 0.5,
        Voice("festival", "pc_diphone", "male", english=False): 0.5,
        **{
            Voice("people", name, person.gender, english=False): PEOPLE_WEIGHT / len(PEOPLE)
            for name, person in PEOPLE.items()
        },
    },
    "dev": {
        Voice("espeak", "en-gb-x-gbclan"): 1.0,
        Voice("festival", "kal_diphone", "male"): 0.5,
    },
    "test": {
        Voice("espeak", "en-gb-x-gbcwmd"): 2.0,
        Voice("festival", "ked_diphone", "male"): 1.0,
        Voice("festival", "cmu_us_slt_arctic_hts", "female"): 1.0,
    },
}


@dataclass(frozen=True)
class Timbre:
    """What a speaker's voice has of its own beside pitch and length of the tract: factors on the first four
    formants and on their heights, breath between 0 and 1, and which of espeak-ng's Klatt synthesisers speaks
    (0: none of them)."""

    formants: tuple[float, ...] = (1.0,) * 4
    heights: tuple[float, ...] = (1.0,) * 4
    breath: float = 0.0
    klatt: int = 0


PLAIN = Timbre()


@dataclass(frozen=True)
class Speaker:
    """A virtual speaker; `tract` scales formants (1 = the engine voice's own), `pitch_hz` is the mean,
    `liveliness` a factor on the pitch range."""

    name: str
    voice: Voice
    gender: Gender
    pitch_hz: float
    tract: float
    rate: float
    timbre: Timbre = PLAIN
    liveliness: float = 1.0


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
    """Draw a speaker of `split`, male and female alike often."""
    gender = rng.choice(GENDERS)
    pitch_hz = rng.uniform(85, 135) if gender == "male" else rng.uniform(175, 250)
    # Around 0.3 s a word, as people take for the recorded coffee orders; the voices' own rate is quicker.
    rate = rng.uniform(0.7, 1.05)
    voices = {voice: weight * _lends(voice, gender) for voice, weight in VOICES[split].items()}
    voice = rng.choices(list(voices), list(voices.values()))[0]
    if voice.gender is None:
        tract = rng.uniform(0.90, 1.02) if gender == "male" else rng.uniform(1.10, 1.22)
    elif gender == voice.gender:
        tract = rng.uniform(0.95, 1.05)
    else:
        tract = rng.uniform(1.14, 1.24) if gender == "female" else rng.uniform(0.80, 0.87)
    speaker = Speaker(name, voice, gender, pitch_hz, tract, rate)
    if split != "train":
        return speaker
    own = Random(f"{name}-{pitch_hz}")
    return replace(speaker, timbre=draw_timbre(own), liveliness=2 ** own.uniform(-0.35, 0.35))


def _lends(voice: Voice, gender: Gender) -> float:
    """How willingly a voice is drawn for a speaker of this gender: people seldom for the other one."""
    return OTHER_GENDER_SHARE if voice.engine == "people" and voice.gender != gender else 1.0


def draw_timbre(rng: Random) -> Timbre:
    """The engine voice's own for three speakers in ten."""
    if rng.random() < 0.3:
        return PLAIN
    return Timbre(
        formants=tuple(rng.uniform(0.94, 1.06) for _ in range(4)),
        heights=tuple(2 ** rng.uniform(-0.7, 0.7) for _ in range(4)),
        breath=rng.random() ** 2,
        klatt=rng.choice((0, 0, 0, 1, 2, 3, 4, 5)),
    )


def draw_prosody(rng: Random, emotion: str) -> Prosody:
    """Draw how this utterance expresses `emotion`."""
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
