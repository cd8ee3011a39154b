"""VoxCeleb1: asv, two recordings and the answer yes (one speaker) or no.

    ROOT/veri_test2.txt or veri_test.txt     the published trials: "1 id10270/x/00001.wav id10270/y/00002.wav"
    ROOT/[vox1_dev_wav/|dev/]wav/id<number>/<video>/<clip>.wav, and the same for test

Splits: test is the list of trials; dev and train are pairs drawn, always the same ones, from the other
speakers (the last forty are dev): half of one speaker, from two videos where there are two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from training.corpora.entries import Entry, existing, lines_of
from training.errors import CorpusError

NUM_DEV_SPEAKERS = 40
_TRIALS = ("veri_test2.txt", "veri_test.txt")
_FOLDERS = ("wav", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav")
_ANSWERS = {True: "yes", False: "no"}

Clips = dict[str, list[Path]]


def read(root: Path, *, num_train_pairs: int = 20_000, num_dev_pairs: int = 1_000) -> Iterator[Entry]:
    """The trials, and the pairs drawn for training.

    Raises:
        CorpusError: no recordings or no trials, a trial names a missing recording, or there are too few
            speakers to draw pairs from.
    """
    trials = next((root / name for name in _TRIALS if (root / name).is_file()), None)
    if trials is None:
        raise CorpusError(f"{root}: no list of trials here; looked for {', '.join(_TRIALS)}")
    clips = _clips(root)
    tested: set[str] = set()
    for same, names in _trials(trials):
        tested.update(name.split("/")[0] for name in names)
        first, second = (_found(root, name, trials) for name in names)
        yield Entry("test", "asv", (first, second), _ANSWERS[same])
    speakers = sorted(set(clips) - tested)
    num_dev = min(NUM_DEV_SPEAKERS, len(speakers) // 2)
    cut = len(speakers) - num_dev
    parts = {"train": (speakers[:cut], num_train_pairs), "dev": (speakers[cut:], num_dev_pairs)}
    for split, (names, count) in parts.items() if speakers else ():
        if len(names) < 2:
            raise CorpusError(f"{root}: {len(names)} speakers for {split}, pairs need at least two")
        rng, own = Random(split), {name: clips[name] for name in names}
        for number in range(count):
            pair, same = _pair(own, number % 2 == 0, rng)
            yield Entry(split, "asv", pair, _ANSWERS[same])


def _clips(root: Path) -> Clips:
    clips: Clips = {}
    for folder in _FOLDERS:
        for file in sorted((root / folder).glob("id*/*/*.wav")):
            clips.setdefault(file.parent.parent.name, []).append(file)
    if not clips:
        raise CorpusError(f"{root}: no id*/*/*.wav here; looked in {', '.join(_FOLDERS)}")
    return clips


def _trials(path: Path) -> Iterator[tuple[bool, list[str]]]:
    """Each trial: whether it is one speaker, and the two names."""
    for number, line in enumerate(lines_of(path), start=1):
        said, *names = line.split()
        if len(names) != 2 or said not in ("0", "1"):
            raise CorpusError(f'{path}:{number}: not of the form "1 id…/…/….wav id…/…/….wav"')
        yield said == "1", names


def _found(root: Path, name: str, trials: Path) -> Path:
    for folder in _FOLDERS:
        if (root / folder / name).is_file():
            return root / folder / name
    return existing(root / _FOLDERS[0] / name, str(trials))


def _pair(clips: Clips, same: bool, rng: Random) -> tuple[tuple[Path, Path], bool]:
    one, other = rng.sample(list(clips), 2)
    first = rng.choice(clips[one])
    if not same:
        return (first, rng.choice(clips[other])), False
    others: Sequence[Path] = [file for file in clips[one] if file.parent != first.parent]
    others = others or [file for file in clips[one] if file != first]
    return ((first, rng.choice(others)), True) if others else ((first, rng.choice(clips[other])), False)
