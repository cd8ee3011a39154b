"""Make the embedded model's corpus: ``python -m training.tiny.corpus --out data/tiny``.

Speech is synthesised with espeak-ng and flite (``apt-get install espeak-ng flite``) from the closed grammar,
by virtual speakers of drawn gender, in four emotions, then degraded a little (noise, band limits). Three
splits without a common sentence, and without a common engine voice between train and the others. Writes

- ``<out>/<split>/audio/*.flac`` (16 kHz, mono),
- ``<out>/<split>/utterances.jsonl`` (transcript, translation, gender, emotion, speaker),
- ``<out>/<split>/<task>.jsonl``, the manifests that mask training and evaluation read.

The same seed gives the same corpus, however many workers make it.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import soundfile
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy.signal import butter, sosfilt

from training.tiny.grammar import Split, draw
from training.tiny.voices import EMOTIONS, SAMPLE_RATE_HZ, Studio, draw_prosody, draw_speaker

SIZES: dict[Split, int] = {"train": 24_000, "dev": 600, "test": 600}
UTTERANCES_PER_SPEAKER = 20
SHARD = 500

Utterance = dict[str, str]


def answers(utterance: Utterance) -> dict[str, str]:
    """The right answer of every task for an utterance, in the wording that the model is trained to give."""
    text, gender = utterance["transcript"], utterance["gender"]
    return {
        "asr": text,
        "gr": gender,
        "ser": utterance["emotion"],
        "s2tt": utterance["translation"],
        "asr-gr": f"{text} | {gender}",
        "gr-asr": f"{gender} | {text}",
        "asr-gr-json": json.dumps({"transcript": text, "gender": gender}, ensure_ascii=False),
    }


def degrade(wave: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Add silence around the speech, sometimes a telephone's band limit, and noise at 15 to 50 dB below the
    speech."""
    before, after = rng.integers(800, 5000, size=2)
    level = float(np.sqrt(np.mean(wave**2)))
    wave = np.pad(wave, (int(before), int(after)))
    if rng.random() < 0.15:
        band = butter(4, [250, 3600], btype="bandpass", fs=SAMPLE_RATE_HZ, output="sos")
        wave = np.asarray(sosfilt(band, wave), dtype=np.float32)
    noise = rng.standard_normal(len(wave))
    if rng.random() < 0.5:  # brown-ish: more noise at low frequencies, as rooms have
        noise = np.convolve(noise, np.ones(8) / np.sqrt(8), mode="same")
    noisy = wave + noise * level * 10 ** (-rng.uniform(15, 50) / 20)
    peak = np.abs(noisy).max()
    return np.asarray(noisy / max(1.0, peak / 0.99), dtype=np.float32)


def make_shard(folder: Path, split: Split, shard: int, count: int, seed: int) -> list[Utterance]:
    """Synthesise ``count`` utterances into ``folder`` and return their records; alone decided by its
    arguments."""
    rng = Random(f"{seed}-{split}-{shard}")
    noise_rng = np.random.default_rng([seed, ("train", "dev", "test").index(split), shard])
    records: list[Utterance] = []
    with tempfile.TemporaryDirectory() as scratch:
        studio = Studio(Path(scratch))
        for index in range(count):
            if index % UTTERANCES_PER_SPEAKER == 0:
                speaker = draw_speaker(
                    rng, f"{split}-{shard:03d}-{index // UTTERANCES_PER_SPEAKER:02d}", split
                )
            sentence, emotion = draw(rng, split), rng.choice(EMOTIONS)
            wave = degrade(studio.speak(sentence.english, speaker, draw_prosody(rng, emotion)), noise_rng)
            name = f"audio/{shard:03d}-{index:03d}.flac"
            soundfile.write(folder / name, wave, SAMPLE_RATE_HZ)
            records.append(
                {
                    "path": name,
                    "transcript": sentence.english,
                    "translation": sentence.german,
                    "gender": speaker.gender,
                    "emotion": emotion,
                    "speaker": speaker.name,
                    "voice": f"{speaker.engine}/{speaker.voice}",
                }
            )
    return records


def write_manifests(folder: Path, records: list[Utterance]) -> None:
    """Write ``utterances.jsonl`` and one manifest a task."""
    tasks = [answers(record) for record in records]
    tables: dict[str, list[dict[str, str]]] = {"utterances": records}
    for task in tasks[0]:
        rows = zip(records, tasks, strict=True)
        tables[task] = [{"path": r["path"], "text": a[task], "task": task} for r, a in rows]
    for name, table in tables.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in table)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the corpus.")] = Path("data/tiny"),
    seed: Annotated[int, typer.Option(help="Seed of sentences, speakers and noise.")] = 0,
    scale: Annotated[float, typer.Option(help="Size of the corpus relative to the full one.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
) -> None:
    """Synthesise the train, dev and test splits."""
    with ProcessPoolExecutor(workers) as pool:
        for split, full in SIZES.items():
            folder = out / split
            (folder / "audio").mkdir(parents=True, exist_ok=True)
            size = max(1, round(full * scale))
            counts = [min(SHARD, size - start) for start in range(0, size, SHARD)]
            futures = [pool.submit(make_shard, folder, split, i, n, seed) for i, n in enumerate(counts)]
            shards = [future.result() for future in track(futures, f"{split:5}")]
            write_manifests(folder, [record for shard in shards for record in shard])


if __name__ == "__main__":
    typer.run(main)
