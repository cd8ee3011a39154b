"""Many wordings of one task: lists, and paraphrases by simple edits that do not change what is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.errors import ConfigError
from training.toml_file import read_toml

WORDINGS = Path(__file__).with_name("wordings.toml")


@dataclass(frozen=True)
class Wording:
    """An instruction, and where it comes from: "recipe", "list", or the edit that made it."""

    text: str
    origin: str


def load_wordings(path: Path = WORDINGS) -> dict[str, tuple[str, ...]]:
    """A list of wordings a task, from a TOML file.

    Raises:
        ConfigError: unreadable, not TOML, or a task whose value is no list of texts.
    """
    values = read_toml(path)
    for task, wordings in values.items():
        good = isinstance(wordings, list) and wordings
        if not good or not all(isinstance(text, str) and text.strip() for text in wordings):
            raise ConfigError(f"{path}: {task} is not a list of wordings")
    return {task: tuple(wordings) for task, wordings in values.items()}


def wordings_of(own: Iterable[str], listed: Iterable[str], *, edits: bool = True) -> tuple[Wording, ...]:
    """The recipe's wordings, those of a list, and the edits of the recipe's first; each text once."""
    found = [Wording(text, "recipe") for text in own]
    found += [Wording(text, "list") for text in listed]
    if edits and found:
        found += edited(found[0].text)
    once: dict[str, Wording] = {}
    for wording in found:
        once.setdefault(wording.text, wording)
    return tuple(once.values())


def edited(text: str) -> Iterator[Wording]:
    """Paraphrases of an instruction by case, punctuation, politeness and order."""
    text = text.strip()
    bare = text.rstrip(" .!?")
    asks = text.endswith("?")
    yield Wording(text.lower(), "case: lower")
    yield Wording(text.upper(), "case: upper")
    yield Wording(bare, "punctuation: none")
    yield Wording(f"{bare}{'??' if asks else '!'}", "punctuation: strong")
    lowered = bare[0].lower() + bare[1:] if bare else bare
    if asks:
        yield Wording(f"Please tell me: {lowered}?", "politeness: please")
        yield Wording(f"Could you tell me: {lowered}?", "politeness: question")
    else:
        yield Wording(f"Please {lowered}.", "politeness: please")
        yield Wording(f"Could you {lowered}, please?", "politeness: question")
    yield Wording(f"{text} Thank you.", "politeness: thanks")
    swapped = _swapped(text)
    if swapped != text:
        yield Wording(swapped, "order: swapped")
    yield Wording(f"For this recording: {lowered}{'?' if asks else '.'}", "order: recording first")


def _swapped(text: str) -> str:
    """Alternatives ("male or female") the other way round, or two sentences in the other order."""
    turned = re.sub(r"\b(\w+) or (\w+)\b", r"\2 or \1", text, count=1)
    if turned != text:
        return turned
    sentences = re.findall(r"[^.!?]+[.!?]", text)
    return " ".join(sentence.strip() for sentence in reversed(sentences)) if len(sentences) > 1 else text
