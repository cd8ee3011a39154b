"""What every corpus gives: recordings with answers, by split and task; and how they become manifests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile

from training.errors import CorpusError

MIN_DURATION_S = 1.0
MAX_DURATION_S = 30.0


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; a task on two recordings has two files."""

    split: str
    task: str
    files: tuple[Path, ...]
    text: str
    references: tuple[str, ...] = ()


def write_manifests(
    entries: Iterable[Entry], out: Path, *, on_file: Callable[[], None] = lambda: None
) -> Counter[str]:
    """Write `out`/<split>/<task>.jsonl; returns how many lines each has, and how many were left out.

    Recordings shorter than 1 s or longer than 30 s are left out, as in the paper. `on_file` is told of each
    recording looked at.

    Raises:
        CorpusError: there is no entry, or a recording cannot be read.
    """
    tables: dict[Path, list[str]] = {}
    durations_s: dict[Path, float] = {}
    counts: Counter[str] = Counter()
    for entry in entries:
        for file in entry.files:
            if file not in durations_s:
                durations_s[file] = _duration_s(file)
                on_file()
        if not all(MIN_DURATION_S <= durations_s[file] <= MAX_DURATION_S for file in entry.files):
            counts["left out: not 1 to 30 s"] += 1
            continue
        tables.setdefault(out / entry.split / f"{entry.task}.jsonl", []).append(_line(entry))
        counts[f"{entry.split}/{entry.task}"] += 1
    if not tables:
        raise CorpusError(f"{out}: there is nothing to write, no recording of the corpus can be used")
    for path, lines in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file of a corpus, without empty ones.

    Raises:
        CorpusError: it is missing, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8") from error
    yield from (line for line in text.splitlines() if line.strip())


def existing(path: Path, belongs_to: str) -> Path:
    """`path`, if there is such a file or folder.

    Raises:
        CorpusError: there is none.
    """
    if not path.exists():
        raise CorpusError(f"{path}: missing, but {belongs_to} names it")
    return path


def first_folder(root: Path, names: Iterable[str], what: str) -> Path:
    """The first of the folders `names` that `root` has; "." stands for itself.

    Raises:
        CorpusError: it has none of them.
    """
    tried = list(names)
    for name in tried:
        if (root / name).is_dir():
            return root / name
    raise CorpusError(f"{root}: no {what} here; looked for {', '.join(tried)}")


def _line(entry: Entry) -> str:
    paths = [str(file.resolve()) for file in entry.files]
    line: dict[str, object] = {"path": paths[0]} if len(paths) == 1 else {"paths": paths}
    line |= {"text": entry.text, "task": entry.task}
    if entry.references:
        line["references"] = list(entry.references)
    return json.dumps(line, ensure_ascii=False)


def _duration_s(file: Path) -> float:
    try:
        return float(soundfile.info(file).duration)
    except (OSError, RuntimeError) as error:
        raise CorpusError(f"{file}: cannot be read: {error}") from error
