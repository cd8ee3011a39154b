"""Libri2Mix (LibriMix, two speakers): osr, the words of the first and of the second source.

    ROOT/[Libri2Mix/]wav16k/<max|min>/<train-100|train-360|dev|test>/<mix_clean|mix_both>/<mixture>.wav
    LIBRISPEECH/                                  the transcripts, as for `librispeech`

A mixture is named after its two utterances: <speaker-chapter-number>_<speaker-chapter-number>.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.corpora import librispeech
from training.corpora.entries import Entry, first_folder
from training.errors import CorpusError

_SPLITS = {"train-100": "train", "train-360": "train", "dev": "dev", "test": "test"}


def read(root: Path, *, texts: Path, mode: str = "max", mix: str = "mix_clean") -> Iterator[Entry]:
    """Every mixture of the parts that are there.

    texts: the folder of LibriSpeech. mode: max or min. mix: mix_clean or mix_both (with noise).

    Raises:
        CorpusError: no mixture, or an utterance that LibriSpeech's transcripts there do not have.
    """
    corpus = first_folder(root, [f"Libri2Mix/wav16k/{mode}", f"wav16k/{mode}"], "Libri2Mix at 16 kHz")
    mixtures = [
        (split, file)
        for part, split in _SPLITS.items()
        for file in sorted((corpus / part / mix).glob("*.wav"))
    ]
    if not mixtures:
        raise CorpusError(f"{corpus}: no <{'|'.join(_SPLITS)}>/{mix}/*.wav here")
    said = {one.name: one.text for one in librispeech.utterances(librispeech.corpus_folder(texts))}
    for split, file in mixtures:
        sources = file.stem.split("_")
        unknown = [source for source in sources if source not in said]
        if unknown or len(sources) != 2:
            raise CorpusError(f"{file}: {texts} has no transcript of {', '.join(unknown) or file.stem}")
        yield Entry(split, "osr", (file,), " | ".join(said[source] for source in sources))
