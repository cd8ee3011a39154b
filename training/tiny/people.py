"""People of other languages: short recordings that Debian packages have, several hundred of some of them.

Nobody wrote down what they say, but they have a gender and are somebody: as records of the corpus they have
no transcript. Whose gender the package does not tell is a man or a woman by their pitch (half of their
recordings have a median of up to 140 Hz, or of 190 Hz or more); who is in between, or a child, is left out.

Packages: tuxpaint-stamps-default (GPL-2: names of things), klettres-data (GPL-2: letters and syllables),
festvox-ru (GPL-3 and BSD: sentences), fillets-ng-data-cs and -nl (GPL-2: a man and a woman who play two
fish), kajongg (GPL-2: calls in a game, two men and two women in each of two languages), ktuberling-data
(GPL-2: names of things) and gcin-voice (GPL-3 or LGPL-3: Mandarin syllables).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np

from training.tiny.waves import SAMPLE_RATE_HZ, Wave, read_wave, trimmed

PACKAGES = (
    "tuxpaint-stamps-default klettres-data festvox-ru fillets-ng-data-cs fillets-ng-data-nl kajongg "
    "ktuberling-data gcin-voice"
)
SHARE = Path("/usr/share")
PAUSE_S = 0.05, 0.3
LENGTH_S = 1.2, 4.0  # of several things that are said one behind the other
WORD_S = 0.3, 0.8  # of one or two
LONGEST_S = 4.0  # of each

Gender = Literal["male", "female"]


@dataclass(frozen=True)
class Person:
    """Who speaks; `recordings`: a glob pattern below /usr/share."""

    gender: Gender
    recordings: str


def _people(kind: str, recordings: str, *, male: str = "", female: str = "") -> dict[str, Person]:
    """One person for each language of the genders; `recordings` with its name in it."""
    languages: dict[Gender, str] = {"male": male, "female": female}
    return {
        f"{kind}-{language}": Person(gender, recordings.format(language))
        for gender, names in languages.items()
        for language in names.split()
    }


PEOPLE = {
    **_people("stamps", "tuxpaint/stamps/**/*_desc_{}.ogg", male="ca da fr nl ru", female="be el es ro"),
    **_people("letters", "klettres/{}/**/*.ogg", male="da en hu lt ml nds", female="cs it nb ru uk"),
    **_people("potato", "ktuberling/sounds/{}/*.ogg", male="de wa", female="uk"),
    **_people("tiles", "kajongg/voices/{}/*.ogg", male="male1 male2", female="female1 female2"),
    **_people("tiles-de", "kajongg/voices/de/{}/*.ogg", male="male1 male2", female="female1 female2"),
    **_people("fish-v", "games/fillets-ng/sound/*/{}/*-v-*.ogg", male="cs nl"),
    **_people("fish-m", "games/fillets-ng/sound/*/{}/*-m-*.ogg", female="cs nl"),
    "syllables-zh": Person("male", "gcin-voice/ogg/*/3.ogg"),
    "sentences-ru": Person("male", "festival/voices/russian/msu_ru_nsh_clunits/wav/*.wav"),
}


def pieces_of(name: str, share: Path = SHARE) -> list[Path]:
    """Whatever there is of a person, in order.

    Raises:
        FileNotFoundError: the package that has it is not installed.
    """
    found = sorted(share.glob(PEOPLE[name].recordings))
    if not found:
        raise FileNotFoundError(f"recordings of {name} are not installed: apt-get install {PACKAGES}")
    return found


def speak(pieces: list[Path], rng: Random, length_s: tuple[float, float] = LENGTH_S) -> Wave:
    """Some of a person's recordings one behind the other, with pauses, float32 [num_samples] at 16 kHz, of at
    least a length that is drawn from the range `length_s`."""
    wanted = rng.uniform(*length_s) * SAMPLE_RATE_HZ
    parts: list[Wave] = []
    while sum(len(part) for part in parts) < wanted:
        pause = np.zeros(round(rng.uniform(*PAUSE_S) * SAMPLE_RATE_HZ), dtype=np.float32)
        said = trimmed(read_wave(rng.choice(pieces)))[: round(LONGEST_S * SAMPLE_RATE_HZ)]
        parts += [said, pause]
    return np.concatenate(parts[:-1])
