"""The closed bilingual grammar of the embedded model: English sentences with their German translation.

Everything the embedded model can say stands here. A sentence is drawn with a seeded generator; the split of a
sentence (train, dev, test) is decided by a hash of its text, so held-out sentences are never trained on,
whatever the voice. Single words (digits, commands) are too few to be held out and belong to the training
split alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from training.tiny.coffee import draw_order

Split = Literal["train", "dev", "test"]

DIGITS = {
    "zero": "null", "one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf",
    "six": "sechs", "seven": "sieben", "eight": "acht", "nine": "neun", "ten": "zehn",
}  # fmt: skip
COMMANDS = {
    "yes": "ja",
    "no": "nein",
    "stop": "stopp",
    "hello": "hallo",
    "help": "hilfe",
    "thank you": "danke",
}
ROOMS = {
    "kitchen": "in der küche", "bedroom": "im schlafzimmer", "bathroom": "im badezimmer",
    "garage": "in der garage", "office": "im büro", "garden": "im garten",
}  # fmt: skip
DEVICES = {
    "light": "das licht", "radio": "das radio", "heater": "die heizung", "lamp": "die lampe",
    "camera": "die kamera", "fan": "den ventilator",
}  # fmt: skip
SWITCHES = {"on": "an", "off": "aus"}
TENS = {"twenty": "zwanzig", "thirty": "dreißig", "forty": "vierzig", "fifty": "fünfzig"}
UNITS = {"percent": "prozent", "degrees": "grad"}
PEOPLE = {
    "my mother": "meine mutter", "my brother": "meinen bruder", "my doctor": "meinen arzt",
    "the police": "die polizei", "anna": "anna", "peter": "peter",
}  # fmt: skip
WHEN = {"today": "heute", "tomorrow": "morgen", "tonight": "heute abend", "now": "jetzt"}
DRINKS = {"coffee": "kaffee", "tea": "tee", "water": "wasser"}
ADDITIONS = {"milk": "milch", "sugar": "zucker", "lemon": "zitrone"}
SIZES = {"small": "kleinen", "large": "großen"}
COLOURS = {"red": "rote", "blue": "blaue", "green": "grüne", "black": "schwarze"}
THINGS = {"bag": "tasche", "cup": "tasse", "door": "tür", "jacket": "jacke"}
WEATHER = {"cold": "kalt", "warm": "warm", "good": "gut", "bad": "schlecht"}
MUSIC = {"jazz": "jazz", "rock": "rock", "piano": "klavier"}


@dataclass(frozen=True)
class Sentence:
    """One English sentence, lower case without punctuation, and its German translation."""

    english: str
    german: str

    @property
    def split(self) -> Split:
        """Train, dev or test by a hash of the English text; single words and short phrases are always
        train."""
        if len(self.english.split()) < 3:
            return "train"
        bucket = hashlib.sha256(self.english.encode()).digest()[0]
        return "test" if bucket < 26 else "dev" if bucket < 39 else "train"


def _pick(rng: Random, table: dict[str, str]) -> tuple[str, str]:
    return rng.choice(list(table.items()))


def _digits(rng: Random) -> Sentence:
    words = [_pick(rng, DIGITS) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
    return Sentence(" ".join(en for en, _ in words), " ".join(de for _, de in words))


def _command(rng: Random) -> Sentence:
    return Sentence(*_pick(rng, COMMANDS))


def _switch(rng: Random) -> Sentence:
    (switch, schalter), (device, geraet) = _pick(rng, SWITCHES), _pick(rng, DEVICES)
    if rng.random() < 0.2:
        return Sentence(f"turn {switch} the {device}", f"schalte {geraet} {schalter}")
    room, raum = _pick(rng, ROOMS)
    return Sentence(f"turn {switch} the {device} in the {room}", f"schalte {geraet} {raum} {schalter}")


def _set(rng: Random) -> Sentence:
    (device, geraet), (number, zahl), (unit, einheit) = (
        _pick(rng, DEVICES),
        _pick(rng, TENS),
        _pick(rng, UNITS),
    )
    return Sentence(f"set the {device} to {number} {unit}", f"stelle {geraet} auf {zahl} {einheit}")


def _call(rng: Random) -> Sentence:
    (person, wen), (when, wann) = _pick(rng, PEOPLE), _pick(rng, WHEN)
    if rng.random() < 0.5:
        number, zahl = _pick(rng, DIGITS)
        when, wann = f"at {number}", f"um {zahl} uhr"
    return Sentence(f"call {person} {when}", f"rufe {wen} {wann} an")


def _order(rng: Random) -> Sentence:
    (size, gross), (drink, getraenk), (extra, zusatz) = (
        _pick(rng, SIZES),
        _pick(rng, DRINKS),
        _pick(rng, ADDITIONS),
    )
    if drink == "water":
        return Sentence(f"i would like water with {extra}", f"ich möchte wasser mit {zusatz}")
    return Sentence(
        f"i would like a {size} {drink} with {extra}", f"ich möchte einen {gross} {getraenk} mit {zusatz}"
    )


def _where(rng: Random) -> Sentence:
    (colour, farbe), (thing, ding) = _pick(rng, COLOURS), _pick(rng, THINGS)
    if rng.random() < 0.4:
        return Sentence(f"where is the {colour} {thing}", f"wo ist die {farbe} {ding}")
    room, raum = _pick(rng, ROOMS)
    return Sentence(f"the {colour} {thing} is in the {room}", f"die {farbe} {ding} ist {raum}")


def _weather(rng: Random) -> Sentence:
    (weather, wetter), (when, wann) = _pick(rng, WEATHER), _pick(rng, WHEN)
    return Sentence(f"the weather is {weather} {when}", f"das wetter ist {wann} {wetter}")


def _music(rng: Random) -> Sentence:
    (music, musik), (room, raum) = _pick(rng, MUSIC), _pick(rng, ROOMS)
    return Sentence(f"play {music} music in the {room}", f"spiele {musik} musik {raum}")


def _coffee(rng: Random) -> Sentence:
    return Sentence(*draw_order(rng))


TEMPLATES: tuple[tuple[Callable[[Random], Sentence], float], ...] = (
    (_digits, 3.0), (_command, 1.0), (_switch, 2.0), (_set, 1.5), (_call, 1.5), (_order, 1.5), (_where, 2.0),
    (_weather, 1.0), (_music, 1.0), (_coffee, 5.0),
)  # fmt: skip


def draw(rng: Random, split: Split) -> Sentence:
    """Draw one sentence of ``split``; templates by weight, slots uniformly."""
    functions, weights = zip(*TEMPLATES, strict=True)
    while True:
        sentence: Sentence = rng.choices(functions, weights)[0](rng)
        if sentence.split == split:
            return sentence
