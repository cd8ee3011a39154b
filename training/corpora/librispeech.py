"""LibriSpeech (openslr.org/12): asr, gr, and both in one answer.

    ROOT/[LibriSpeech/]SPEAKERS.TXT
    ROOT/[LibriSpeech/]<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt and <utterance>.flac

Splits: train (train-*), dev (dev-clean and dev-other), test-clean, test-other. Texts in lower case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.corpora.entries import Entry, existing, first_folder, lines_of
from training.errors import CorpusError

SPLITS = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "dev",
    "dev-other": "dev",
    "test-clean": "test-clean",
    "test-other": "test-other",
}
_GENDERS = {"F": "female", "M": "male"}


class Utterance(NamedTuple):
    """One utterance of a part; `name` is <speaker>-<chapter>-<number>."""

    part: str
    name: str
    file: Path
    text: str


def read(root: Path) -> Iterator[Entry]:
    """Every utterance of the parts that are there, for each task.

    Raises:
        CorpusError: no part, no SPEAKERS.TXT, a speaker without gender, or a recording is missing.
    """
    corpus = corpus_folder(root)
    genders = _genders(corpus / "SPEAKERS.TXT")
    for utterance in utterances(corpus):
        speaker = utterance.name.split("-")[0]
        if speaker not in genders:
            raise CorpusError(f"{corpus / 'SPEAKERS.TXT'}: no speaker {speaker} of {utterance.file}")
        text, gender = utterance.text, genders[speaker]
        answers = {
            "asr": text,
            "gr": gender,
            "asr-gr": f"{text} | {gender}",
            "gr-asr": f"{gender} | {text}",
            "asr-gr-json": json.dumps({"transcript": text, "gender": gender}, ensure_ascii=False),
        }
        for task, answer in answers.items():
            yield Entry(SPLITS[utterance.part], task, (utterance.file,), answer)


def corpus_folder(root: Path) -> Path:
    """The folder that the parts lie in."""
    return first_folder(root, ["LibriSpeech", "."], "LibriSpeech")


def utterances(corpus: Path) -> Iterator[Utterance]:
    """Every utterance of the parts that are there.

    Raises:
        CorpusError: there is no part, or a recording that a transcript names is missing.
    """
    parts = [part for part in SPLITS if (corpus / part).is_dir()]
    if not parts:
        raise CorpusError(f"{corpus}: no part of LibriSpeech here; looked for {', '.join(SPLITS)}")
    for part in parts:
        for transcript in sorted((corpus / part).glob("*/*/*.trans.txt")):
            for line in lines_of(transcript):
                name, _, text = line.partition(" ")
                file = existing(transcript.parent / f"{name}.flac", str(transcript))
                yield Utterance(part, name, file, text.strip().lower())


def _genders(path: Path) -> dict[str, str]:
    """Speaker -> gender, from lines such as `14   | F | train-clean-360    | 25.03 | A Name`."""
    rows = [line.split("|") for line in lines_of(path) if not line.startswith(";")]
    return {row[0].strip(): _GENDERS[row[1].strip()] for row in rows if row[1].strip() in _GENDERS}
