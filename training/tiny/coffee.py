"""Spoken coffee orders, English with their German translation: the part of the grammar with the most words.

The slots are those of a public benchmark of spoken orders (drink, size, roast, shots, milk, sugar), so that
the model can be tried on recordings of people; the sentences around them are drawn here.
"""

from __future__ import annotations

from random import Random
from typing import Any

DRINKS = {
    "coffee": "kaffee", "iced coffee": "eiskaffee", "drip coffee": "filterkaffee", "house coffee":
    "hauskaffee", "espresso": "espresso", "cappuccino": "cappuccino", "latte": "latte", "americano":
    "americano", "mocha": "mokka", "iced mocha": "eismokka",
}  # fmt: skip
SIZES = {
    "small": "kleinen", "medium": "mittleren", "large": "großen", "eight ounce": "acht unzen",
    "twelve ounce": "zwölf unzen", "sixteen ounce": "sechzehn unzen", "twenty ounce": "zwanzig unzen",
}  # fmt: skip
ROASTS = {"light roast": "hell geröstet", "medium roast": "mittel geröstet", "dark roast": "dunkel geröstet"}
SHOTS = {"single shot": "einfach", "double shot": "doppelt", "triple shot": "dreifach"}
MILKS = {
    "milk": "milch", "cream": "sahne", "soy milk": "sojamilch", "almond milk": "mandelmilch",
    "skim milk": "magermilch", "whole milk": "vollmilch",
}  # fmt: skip
SUGARS = {"sugar": "zucker", "brown sugar": "braunem zucker", "sweetener": "süßstoff"}
AMOUNTS = {
    "": "", "some": "etwas", "a bit of": "ein wenig", "a little bit of": "ein wenig", "a lot of": "viel",
    "lots of": "viel",
}  # fmt: skip
OPENINGS = {
    "can i get": "kann ich {} bekommen",
    "can i have": "kann ich {} haben",
    "could i have": "könnte ich {} haben",
    "may i have": "darf ich {} haben",
    "i would like": "ich möchte {}",
    "let me have": "lass mich {} haben",
    "i want": "ich will {}",
    "give me": "gib mir {}",
    "get me": "hol mir {}",
    "make me": "mach mir {}",
    "please make me": "bitte mach mir {}",
    "": "{}",
}


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _extra(rng: Random, table: dict[str, str]) -> tuple[str, str]:
    amount, menge = rng.choice(list(AMOUNTS.items()))
    name, wort = rng.choice(list(table.items()))
    return f"{amount} {name}".strip(), f"{menge} {wort}".strip()


def draw_order(rng: Random) -> tuple[str, str]:
    """An order in English and in German, lower case without punctuation."""
    drink = rng.choice(list(DRINKS.items()))
    size = rng.choice(list(SIZES.items())) if rng.random() < 0.5 else None
    kinds = [rng.choice(list(table.items())) for table in (SHOTS, ROASTS) if rng.random() < 0.4]
    before = _shuffled(rng, [en for en, _ in ([size] if size else []) + kinds])
    extras = _shuffled(rng, [_extra(rng, table) for table in (MILKS, SUGARS) if rng.random() < 0.4])
    return _sentence(rng, drink, size, kinds, before, extras)


def draw_order_of(slots: dict[str, str], rng: Random) -> tuple[str, str]:
    """An order with the given slots, named as in the benchmark's labels, in English and in German.

    Raises:
        KeyError: a slot or a value that is not in the grammar.
    """
    values = {name: value.strip().lower() for name, value in slots.items()}
    drink = _entry(DRINKS, values.pop("coffeeDrink"))
    size = _entry(SIZES, values.pop("size")) if "size" in values else None
    kinds = [
        _entry(table, values.pop(name))
        for name, table in (("numberOfShots", SHOTS), ("roast", ROASTS))
        if name in values
    ]
    tables = {"milkAmount": MILKS, "sugarAmount": SUGARS}
    extras = [_extra_of(value, tables[name]) for name, value in values.items()]
    before = _shuffled(rng, [en for en, _ in ([size] if size else []) + kinds])
    return _sentence(rng, drink, size, kinds, before, _shuffled(rng, extras))


def _entry(table: dict[str, str], english: str) -> tuple[str, str]:
    return english, table[english]


def _extra_of(value: str, table: dict[str, str]) -> tuple[str, str]:
    """The German of an extra, as "a bit of soy milk"."""
    name = max((name for name in table if value.endswith(name)), key=len, default=value)
    amount = value.removesuffix(name).strip()
    return value, f"{AMOUNTS[amount]} {table[name]}".strip()


def _shuffled(rng: Random, values: list[Any]) -> list[Any]:
    rng.shuffle(values)
    return values


def _sentence(
    rng: Random,
    drink: tuple[str, str],
    size: tuple[str, str] | None,
    kinds: list[tuple[str, str]],
    before: list[str],
    extras: list[tuple[str, str]],
) -> tuple[str, str]:
    """`before` are the English words before the drink, in their order."""
    phrase = " ".join([*before, drink[0]])
    sizes = [size[1]] if size else []
    german = " ".join(["einen", *sizes, drink[1], *(wort for _, wort in kinds)])
    if extras:
        phrase += " with " + " and ".join(en for en, _ in extras)
        german += " mit " + " und ".join(de for _, de in extras)
    opening, rahmen = rng.choice(list(OPENINGS.items()))
    please, bitte = (" please", " bitte") if rng.random() < 0.3 and "please" not in opening else ("", "")
    english = f"{opening} {_article(phrase)} {phrase}{please}".strip()
    return english, rahmen.format(german) + bitte
