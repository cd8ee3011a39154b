"""People of other languages: short recordings that Debian packages have, several hundred of some of them.

Nobody wrote down what they say, but they have a gender and are somebody: as records of the corpus they have
no transcript. Whose gender the package does not tell is a man or a woman by the pitch of nearly all of their
recordings (medians to 145 Hz and from 190 Hz on); who is in between, or a child, is left out.

Packages: tuxpaint-stamps-default (GPL-2: names of things), klettres-data (GPL-2: letters and syllables) and
festvox-ru (GPL-3 and BSD: sentences).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, get_args

import numpy as np

from training.tiny.waves import SAMPLE_RATE_HZ, Wave, read_wave, trimmed

PACKAGES = "tuxpaint-stamps-default klettres-data festvox-ru"
PAUSE_S = 0.05, 0.3
LENGTH_S = 1.2, 4.0

Gender = Literal["male", "female"]


@dataclass(frozen=True)
class Person:
    """Who speaks; `recordings`: a glob pattern below /usr/share."""

    gender: Gender
    recordings: str


def _people(kind: str, recordings: str, **languages: str) -> dict[str, Person]:
    """One person for each language of the genders; `recordings` with its name in it."""
    return {
        f"{kind}-{language}": Person(gender, recordings.format(language))
        for gender in get_args(Gender)
        for language in languages[gender].split()
    }


PEOPLE = {
    **_people("stamps", "tuxpaint/stamps/**/*_desc_{}.ogg", male="ca da fr nl ru", female="be el es ro"),
    **_people("letters", "klettres/{}/**/*.ogg", male="da en hu lt ml nds", female="cs it nb ru uk"),
    "sentences-ru": Person("male", "festival/voices/russian/msu_ru_nsh_clunits/wav/*.wav"),
}


def pieces_of(name: str, share: Path = Path("/usr/share")) -> list[Path]:
    """Whatever there is of a person, in order.

    Raises:
        FileNotFoundError: the package that has it is not installed.
    """
    found = sorted(share.glob(PEOPLE[name].recordings))
    if not found:
        raise FileNotFoundError(f"recordings of {name} are not installed: apt-get install {PACKAGES}")
    return found


def speak(pieces: list[Path], rng: Random) -> Wave:
    """Some of a person's recordings one behind the other, with pauses, float32 [num_samples] at 16 kHz."""
    wanted, longest = rng.uniform(*LENGTH_S) * SAMPLE_RATE_HZ, round(LENGTH_S[1] * SAMPLE_RATE_HZ)
    parts: list[Wave] = []
    while sum(len(part) for part in parts) < wanted:
        pause = np.zeros(round(rng.uniform(*PAUSE_S) * SAMPLE_RATE_HZ), dtype=np.float32)
        parts += [trimmed(read_wave(rng.choice(pieces)))[:longest], pause]
    return np.concatenate(parts[:-1])
