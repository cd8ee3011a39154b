"""AudioCaps: aac.

    ROOT/[dataset/]train.csv, val.csv, test.csv     audiocap_id, youtube_id, start_time, caption
    ROOT/**/<name>.wav or .flac                     <name> is audiocap_id, youtube_id or Y<youtube_id>,
                                                    each with or without _<start_time>

Splits: train, dev (val.csv), test. The captions of one clip of val and test are one line with references.
Clips that can no longer be downloaded are left out; when there is none at all, that is an error.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from training.corpora.entries import Entry, first_folder, lines_of
from training.errors import CorpusError

_FILES = {"train.csv": "train", "val.csv": "dev", "test.csv": "test"}
_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def read(root: Path) -> Iterator[Entry]:
    """Every caption of train; every clip of dev and test.

    Raises:
        CorpusError: no table, a table without its columns, or no audio file of any clip.
    """
    folder = next((root / name for name in ("dataset", ".") if (root / name / "train.csv").is_file()), root)
    tables = [folder / name for name in _FILES if (folder / name).is_file()]
    if not tables:
        raise CorpusError(f"{first_folder(root, ['.'], 'AudioCaps')}: no {', '.join(_FILES)} here")
    audio = {path.stem: path for ext in ("wav", "flac") for path in sorted(root.rglob(f"*.{ext}"))}
    num_found = 0
    for table in tables:
        split = _FILES[table.name]
        for file, captions in _clips(table, audio):
            num_found += 1
            if split == "train":
                yield from (Entry(split, "aac", (file,), caption) for caption in captions)
            else:
                yield Entry(split, "aac", (file,), captions[0], tuple(captions[1:]))
    if not num_found:
        raise CorpusError(
            f"{root}: none of the clips of {', '.join(map(str, tables))} is here as wav or flac"
        )


def _clips(table: Path, audio: dict[str, Path]) -> Iterator[tuple[Path, list[str]]]:
    """Each clip whose audio is there, with its captions."""
    rows = csv.DictReader(lines_of(table))
    missing = set(_COLUMNS) - set(rows.fieldnames or ())
    if missing:
        raise CorpusError(f"{table}: no column {', '.join(sorted(missing))}")
    captions: dict[Path, list[str]] = {}
    for row in rows:
        names = (row["audiocap_id"], row["youtube_id"], f"Y{row['youtube_id']}")
        stems = (stem for name in names for stem in (f"{name}_{row['start_time']}", name))
        file = next((audio[stem] for stem in stems if stem in audio), None)
        if file is not None and row["caption"].strip():
            captions.setdefault(file, []).append(row["caption"].strip())
    yield from captions.items()
