"""IEMOCAP: ser, in the usual four classes (excited counts as happy).

    ROOT/[IEMOCAP_full_release/]Session<1-5>/dialog/EmoEvaluation/<dialog>.txt
    ROOT/[IEMOCAP_full_release/]Session<1-5>/sentences/wav/<dialog>/<utterance>.wav

Splits by session, so that no speaker is in two of them: test is Session 5, dev Session 4, train the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from training.corpora.entries import Entry, existing, first_folder, lines_of
from training.errors import CorpusError

EMOTIONS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
_SPLITS = {"Session5": "test", "Session4": "dev"}
_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")


def read(root: Path) -> Iterator[Entry]:
    """Every utterance with one of the four emotions.

    Raises:
        CorpusError: no session or no evaluation, or a recording is missing.
    """
    corpus = first_folder(root, ["IEMOCAP_full_release", "."], "IEMOCAP")
    evaluations = sorted(corpus.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt"))
    if not evaluations:
        raise CorpusError(f"{corpus}: no Session<1-5>/dialog/EmoEvaluation/Ses*.txt here")
    for evaluation in evaluations:
        session = evaluation.parents[2]
        for line in lines_of(evaluation):
            found = _LINE.match(line)
            if found is None or found[2] not in EMOTIONS:
                continue
            dialog = session / "sentences" / "wav" / evaluation.stem
            file = existing(dialog / f"{found[1]}.wav", str(evaluation))
            yield Entry(_SPLITS.get(session.name, "train"), "ser", (file,), EMOTIONS[found[2]])
