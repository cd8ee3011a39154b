"""Make the embedded model's corpus: ``python -m training.tiny.corpus --out data/tiny``.

Speech is synthesised from the closed grammar by virtual speakers of drawn gender, in four emotions; a quarter
of it has a sound behind it; there are sound scenes without speech and pairs of speakers who talk at once.
Then every recording is degraded (rooms, noise, narrow bands, codecs). Three splits without a common sentence,
and without a common engine voice between train and the others; a fourth, ``clean``, is the speech of test
with nothing behind it and nothing done to it. Train has people of other languages too (`natural`).
``--digits`` adds recordings of people (the Free Spoken Digit Dataset): to train, but for the speaker held
out, who makes the split ``digits``. Writes

- ``<out>/<split>/audio/*.flac`` (16 kHz, mono),
- ``<out>/<split>/utterances.jsonl`` (`training.tiny.records`) and ``pairs.jsonl`` (speaker verification),
- ``<out>/<split>/<task>.jsonl``, the manifests that mask training and evaluation read, and
  ``<out>/train/gr-people.jsonl`` and ``gr-people-valid.jsonl``, which are mostly people (`natural`).

The same seed gives the same corpus, however many workers make it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import soundfile
import typer
from rich.progress import track

from training.tiny import mixtures
from training.tiny.acoustics import degrade, place
from training.tiny.digits import HELD_OUT_SPEAKER, write_digits
from training.tiny.grammar import Split, draw
from training.tiny.natural import mostly_people, write_people
from training.tiny.pairs import draw_pairs
from training.tiny.records import TASKS, Pair, Record, Traits, answers
from training.tiny.studio import Studio
from training.tiny.voices import EMOTIONS, draw_prosody, draw_speaker
from training.tiny.waves import SAMPLE_RATE_HZ, Wave

SIZES: dict[Split, int] = {"train": 50_000, "dev": 600, "test": 600}
CLEAN = "clean"
FOLDERS: dict[str, Split] = {"train": "train", "dev": "dev", "test": "test", CLEAN: "test"}
# Sound scenes and overlaps, as shares of the utterances.
SCENE_SHARE: dict[Split, float] = {"train": 0.15, "dev": 0.5, "test": 0.5}
OVERLAP_SHARE: dict[Split, float] = {"train": 0.05, "dev": 0.5, "test": 0.5}
# With 6,000 pairs to train on, the decoder did not learn to compare.
NUM_PAIRS: dict[Split, int] = {"train": 60_000, "dev": 600, "test": 600}
# Of the pairs of two speakers; where half of them differ in gender, little is learnt beyond that.
ONE_GENDER_SHARE: dict[Split, float] = {"train": 0.85, "dev": 0.5, "test": 0.5}
# Of them too: drawn to have one voice and gender. Dev and test have few voices, and so about a quarter.
TWIN_SHARE: dict[Split, float] = {"train": 0.35, "dev": 0.0, "test": 0.0}
UTTERANCES_PER_SPEAKER = 20
OVER_SOUND_SHARE = 0.25
NUM_VALID = 800  # rows of the manifest of people that are kept to validate with
SHARD = 250


class Shard:
    """One shard of a split: draws, speaks and writes; alone decided by its arguments."""

    def __init__(self, folder: Path, split: Split, shard: int, seed: int) -> None:
        self._folder, self._split, self._shard = folder, split, shard
        self._rng = Random(f"{seed}-{split}-{shard}")
        self._noise = np.random.default_rng([seed, ("train", "dev", "test").index(split), shard])

    def make(self, count: int) -> list[Record]:
        """Speech (`count` utterances), then overlaps of it, then sound scenes."""
        spoken = self._speak(count)
        overlaps = round(count * OVERLAP_SHARE[self._split])
        scenes = round(count * SCENE_SHARE[self._split])
        records = [self._utterance(wave, record) for wave, record in spoken]
        records += [self._overlap(number, spoken) for number in range(overlaps)]
        return records + [self._scene(number) for number in range(scenes)]

    def make_clean(self, count: int) -> list[Record]:
        """The speech of `make` alone: nothing behind it, nothing done to it."""
        spoken = self._speak(count)
        for wave, record in spoken:
            soundfile.write(self._folder / record.path, place(wave, self._noise), SAMPLE_RATE_HZ)
        return [record for _, record in spoken]

    def _speak(self, count: int) -> list[tuple[Wave, Record]]:
        rng, spoken = self._rng, []
        with tempfile.TemporaryDirectory() as scratch:
            studio = Studio(Path(scratch))
            for index in range(count):
                if index % UTTERANCES_PER_SPEAKER == 0:
                    number = index // UTTERANCES_PER_SPEAKER
                    speaker = draw_speaker(rng, f"{self._split}-{self._shard:03d}-{number:02d}", self._split)
                sentence, emotion = draw(rng, self._split), rng.choice(EMOTIONS)
                prosody = draw_prosody(rng, emotion)
                wave = studio.speak(sentence.english, speaker, prosody)
                record = Record(
                    path=f"audio/{self._shard:03d}-{index:03d}.flac",
                    transcript=sentence.english if speaker.voice.english else None,
                    translation=sentence.german if speaker.voice.english else None,
                    gender=speaker.gender,
                    emotion=emotion if speaker.voice.has_emotions else None,
                    speaker=speaker.name,
                    voice=f"{speaker.voice.engine}/{speaker.voice.name}",
                    traits=Traits.of(speaker, prosody),
                )
                spoken.append((wave, record))
        return spoken

    def _utterance(self, wave: Wave, record: Record) -> Record:
        if self._rng.random() < OVER_SOUND_SHARE and record.gender is not None:
            wave, caption, sounds = mixtures.speech_over(wave, record.gender, self._rng, self._noise)
            record = replace(record, caption=caption, sounds=sounds)
        return self._write(wave, record)

    def _overlap(self, number: int, spoken: list[tuple[Wave, Record]]) -> Record:
        known = [(wave, record) for wave, record in spoken if record.has_known_words]
        (first, one), (second, other) = self._rng.sample(known, 2)
        wave = mixtures.overlap(first, second, self._rng)
        path = f"audio/{self._shard:03d}-o{number:03d}.flac"
        return self._write(wave, Record(path=path, transcript=one.transcript, second=other.transcript))

    def _scene(self, number: int) -> Record:
        wave, caption, sounds = mixtures.scene(self._rng, self._noise)
        path = f"audio/{self._shard:03d}-s{number:03d}.flac"
        return self._write(wave, Record(path=path, caption=caption, sounds=sounds))

    def _write(self, wave: Wave, record: Record) -> Record:
        soundfile.write(self._folder / record.path, degrade(wave, self._noise), SAMPLE_RATE_HZ)
        return record


def make_shard(
    folder: Path, split: Split, shard: int, count: int, *, seed: int, clean: bool = False
) -> list[Record]:
    """Synthesise one shard into `folder` and return its records."""
    maker = Shard(folder, split, shard, seed)
    return maker.make_clean(count) if clean else maker.make(count)


def write_manifests(folder: Path, records: list[Record], pairs: list[Pair]) -> None:
    """Write ``utterances.jsonl``, ``pairs.jsonl`` and one manifest a task."""
    tables: dict[str, list[dict[str, Any]]] = {"utterances": [record.as_json() for record in records]}
    tables["pairs"] = [{"first": p.first, "second": p.second, "same": p.same} for p in pairs]
    tables["asv"] = [
        {
            "path": records[pair.first].path,
            "expand_wav": [records[pair.second].path],
            "text": pair.answer,
            "task": "asv",
        }
        for pair in pairs
    ]
    for record in records:
        for task, text in answers(record).items():
            tables.setdefault(task, []).append({"path": record.path, "text": text, "task": task})
    for name in ("utterances", "pairs", *TASKS):
        if tables.get(name):
            write_table(folder / f"{name}.jsonl", tables[name])


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the corpus.")] = Path("data/tiny"),
    seed: Annotated[int, typer.Option(help="Seed of sentences, speakers and noise.")] = 0,
    scale: Annotated[float, typer.Option(help="Size of the corpus relative to the full one.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    digits: Annotated[
        Path | None, typer.Option(help="Folder of Free Spoken Digit Dataset recordings, to train on too.")
    ] = None,
) -> None:
    """Synthesise the splits."""
    with ProcessPoolExecutor(workers) as pool:
        for name, split in FOLDERS.items():
            folder = out / name
            (folder / "audio").mkdir(parents=True, exist_ok=True)
            size = max(UTTERANCES_PER_SPEAKER * 2, round(SIZES[split] * scale))
            counts = [min(SHARD, size - start) for start in range(0, size, SHARD)]
            make = partial(make_shard, folder, split, seed=seed, clean=name == CLEAN)
            futures = [pool.submit(make, shard, count) for shard, count in enumerate(counts)]
            shards = [future.result() for future in track(futures, f"{name:5}")]
            records = [record for shard in shards for record in shard]
            shares = ONE_GENDER_SHARE[split], TWIN_SHARE[split]
            pairs = draw_pairs(
                records, max(1, round(NUM_PAIRS[split] * scale)), Random(f"{seed}-{split}"), *shares
            )
            people, spoken = [], []
            if split == "train":
                people = write_people(folder, seed)
            if digits is not None and split == "train":
                spoken = write_digits(digits, folder, lambda name: name != HELD_OUT_SPEAKER, seed)
            write_manifests(folder, [*records, *people, *spoken], pairs)
            if people:
                rows = mostly_people(people, [*records, *spoken], Random(f"{seed}-people"))
                write_table(folder / "gr-people-valid.jsonl", rows[:NUM_VALID])
                write_table(folder / "gr-people.jsonl", rows[NUM_VALID:])
    if digits is not None:
        folder = out / "digits"
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        records = write_digits(digits, folder, lambda name: name == HELD_OUT_SPEAKER, seed, clean=True)
        write_manifests(folder, records, [])


if __name__ == "__main__":
    typer.run(main)
