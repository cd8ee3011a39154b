"""CoVoST 2, English to another language, on Common Voice: s2tt.

    ROOT/covost_v2.en_<language>.tsv                the release: path, translation, split
    or ROOT/covost_v2.en_<language>.<split>.tsv     what its script makes: path, sentence, translation
    ROOT/[en/]clips/<path>.mp3

Splits: train, dev, test; rows of any other split are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from training.corpora.entries import Entry, existing, first_folder, lines_of
from training.errors import CorpusError

_SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}


def read(root: Path, *, language: str = "de") -> Iterator[Entry]:
    """Every clip that has a translation.

    Raises:
        CorpusError: no table of this language, a table without its columns, or a clip is missing.
    """
    clips = first_folder(root, ["clips", "en/clips"], "folder of clips")
    name = f"covost_v2.en_{language}"
    tables = [(split, root / f"{name}.{split}.tsv") for split in ("train", "dev", "test")]
    if not any(path.is_file() for _, path in tables):
        tables = [("", root / f"{name}.tsv")]
    if not any(path.is_file() for _, path in tables):
        raise CorpusError(f"{root}: neither {name}.tsv nor {name}.train.tsv, .dev.tsv, .test.tsv here")
    for split, path in tables:
        for row in _rows(path, {"path", "translation"} | (set() if split else {"split"})):
            at = split or _SPLITS.get(row["split"], "")
            if at and row["translation"].strip():
                clip = clips / row["path"]
                file = clip if clip.suffix else clip.with_suffix(".mp3")
                yield Entry(at, "s2tt", (existing(file, str(path)),), row["translation"].strip())


def _rows(path: Path, needed: set[str]) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(lines_of(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = needed - set(rows.fieldnames or ())
    if missing:
        raise CorpusError(f"{path}: no column {', '.join(sorted(missing))}")
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in needed):
            raise CorpusError(f"{path}:{number}: too few columns")
        yield row
