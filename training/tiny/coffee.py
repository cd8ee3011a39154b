"""Spoken coffee orders, English with their German translation: the part of the grammar with the most words.

The slots are those of a public benchmark of spoken orders (drink, size, roast, shots, milk, sugar), so that
the model can be tried on recordings of people; the sentences around them are drawn here.
"""

from __future__ import annotations

from random import Random

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
    """An order in English and in German, lower case without punctuation;"""
    drink, getraenk = rng.choice(list(DRINKS.items()))
    before, davor, danach = [], [], []
    if rng.random() < 0.5:
        size, groesse = rng.choice(list(SIZES.items()))
        before, davor = [size], [groesse]
    for table in (SHOTS, ROASTS):
        if rng.random() < 0.4:
            word, wort = rng.choice(list(table.items()))
            before.append(word)
            danach.append(wort)
    rng.shuffle(before)
    phrase = " ".join([*before, drink])
    german = " ".join(["einen", *davor, getraenk, *danach])
    extras = [_extra(rng, table) for table in (MILKS, SUGARS) if rng.random() < 0.4]
    rng.shuffle(extras)
    if extras:
        phrase += " with " + " and ".join(en for en, _ in extras)
        german += " mit " + " und ".join(de for _, de in extras)
    opening, rahmen = rng.choice(list(OPENINGS.items()))
    please, bitte = (" please", " bitte") if rng.random() < 0.3 and "please" not in opening else ("", "")
    english = f"{opening} {_article(phrase)} {phrase}{please}".strip()
    return english, rahmen.format(german) + bitte
