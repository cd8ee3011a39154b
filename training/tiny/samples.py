"""Make the recordings of ``samples/``: ``python -m training.tiny.samples``.

Held-out sentences by held-out voices, two of them at once, and sounds, drawn with seeds of their own, so no
training saw them. They are a smoke test and a demonstration, not a benchmark: a recording is kept only if
every task that asks about its kind answers it right, as WAV and as MP3, M4A and WebM; others are passed over.
The measured error rates stand in the README.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Annotated, Any

import av
import numpy as np
import soundfile
import torch
import typer

from lalm.audio import decode_audio
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.generation import generate
from training.tiny import mixtures
from training.tiny.acoustics import degrade
from training.tiny.grammar import draw
from training.tiny.records import Pair, Record, answers
from training.tiny.studio import Studio
from training.tiny.voices import EMOTIONS, draw_prosody, draw_speaker
from training.tiny.waves import SAMPLE_RATE_HZ, Wave

ENCODINGS = (("mp3", "libmp3lame", 44_100), ("mp4", "aac", 44_100), ("webm", "libopus", 48_000))
SPEAKER_VERIFICATION = "asv"


@dataclass(frozen=True)
class Clip:
    """A recording before it is a file: a name for it, its sound, and what is known of it."""

    name: str
    wave: Wave
    record: Record


class Drawer:
    """Draws clips of held-out voices and sentences without end; each kind may be drawn in turn."""

    def __init__(self, seed: int, scratch: Path) -> None:
        self._rng, self._noise = Random(f"samples-{seed}"), np.random.default_rng(seed)
        self._studio = Studio(scratch)
        self._num_speakers = 0

    def speech(self) -> Iterator[Clip]:
        """Utterances, two of each speaker in turn."""
        while True:
            for clean in self._speak(2):
                yield Clip(clean.name, degrade(clean.wave, self._noise), clean.record)

    def overlaps(self) -> Iterator[Clip]:
        """Two speakers at once."""
        while True:
            (one,), (other,) = self._speak(1), self._speak(1)
            wave = mixtures.overlap(one.wave, other.wave, self._rng)
            record = Record(path="", transcript=one.record.transcript, second=other.record.transcript)
            yield Clip(f"{one.name}--{other.name}", degrade(wave, self._noise), record)

    def scenes(self) -> Iterator[Clip]:
        """Sounds without speech."""
        while True:
            wave, caption, sounds = mixtures.scene(self._rng, self._noise)
            record = Record(path="", caption=caption, sounds=sounds)
            yield Clip(caption.replace(" ", "-"), degrade(wave, self._noise), record)

    def _speak(self, count: int) -> list[Clip]:
        rng, clips = self._rng, []
        self._num_speakers += 1
        speaker = draw_speaker(rng, f"sample-{self._num_speakers}", "test")
        for _ in range(count):
            sentence, emotion = draw(rng, "test"), rng.choice(EMOTIONS)
            wave = self._studio.speak(sentence.english, speaker, draw_prosody(rng, emotion))
            record = Record(
                path="",
                transcript=sentence.english,
                translation=sentence.german,
                gender=speaker.gender,
                emotion=emotion,
                speaker=speaker.name,
            )
            clips.append(Clip(sentence.english.replace(" ", "-"), wave, record))
        return clips


class Judge:
    """Keeps recordings that every task answers right, and what it is to answer, in `expected`."""

    def __init__(self, family: ModelFamily, masks: list[MaskFile], out: Path) -> None:
        self._family, self._out = family, out
        self._masks = {mask.task.name: mask for mask in masks}
        self.expected: list[dict[str, Any]] = []

    def keep(self, clips: Iterator[Clip], count: int, tries: int) -> list[Clip]:
        """The first `count` of at most `tries` clips that are answered right, as files in `out`.

        The kept clips have the waveform that the file has.
        """
        kept: dict[str, Clip] = {}
        for clip, _ in zip(clips, range(tries), strict=False):
            truth = {task: text for task, text in answers(clip.record).items() if task in self._masks}
            if not truth:
                break  # no task asks about recordings of this kind
            if clip.name in kept:
                continue
            wave = stored(clip.wave)
            heard = [wave, *(decode_audio(as_file(wave, *encoding)) for encoding in ENCODINGS)]
            if all(self._answer(task, [wave]) == truth[task] for wave in heard for task in truth):
                soundfile.write(self._out / f"{clip.name}.wav", wave, SAMPLE_RATE_HZ, subtype="PCM_16")
                kept[clip.name] = Clip(clip.name, wave, clip.record)
                self._expect(f"{clip.name}.wav", truth)
            if len(kept) == count:
                break
        return list(kept.values())

    def keep_pairs(self, clips: list[Clip], count: int) -> int:
        """Expect the answers about up to `count` pairs of one speaker, and of two; how many there are."""
        if SPEAKER_VERIFICATION not in self._masks:
            return 0
        kept: dict[bool, int] = {True: 0, False: 0}
        for (first, one), (second, other) in combinations(enumerate(clips), 2):
            pair = Pair(first, second, same=one.record.speaker == other.record.speaker)
            text = self._answer(SPEAKER_VERIFICATION, [one.wave, other.wave])
            if kept[pair.same] < count and text == pair.answer:
                kept[pair.same] += 1
                self._expect([f"{one.name}.wav", f"{other.name}.wav"], {SPEAKER_VERIFICATION: text})
        return sum(kept.values())

    def _expect(self, file: str | list[str], truth: dict[str, str]) -> None:
        for task, text in sorted(truth.items()):
            result = self._masks[task].task.parse(text).result
            self.expected.append({"file": file, "task": task, "result": result})

    def _answer(self, task: str, waves: list[Wave]) -> str:
        mask, family = self._masks[task], self._family
        with torch.inference_mode():
            prompt = family.embed_prompt(family.embed_audio([family.features(wave) for wave in waves]))
        limit = mask.task.max_new_tokens
        (ids,) = generate(family, [prompt], head_mask=mask.head_mask, max_new_tokens=limit)
        return family.decode_tokens(ids)


def stored(wave: Wave) -> Wave:
    """``wave`` as a 16-bit file holds it."""
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    file.seek(0)
    return np.asarray(soundfile.read(file, dtype="float32")[0], dtype=np.float32)


def as_file(wave: Wave, container: str, codec: str, rate_hz: int) -> bytes:
    """``wave`` (float32 [num_samples], 16 kHz) as a telephone or a browser would send it."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate_hz, layout="mono")
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate_hz)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ), 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the recordings.")] = Path("samples"),
    masks: Annotated[Path, typer.Option(help="Folder with the mask files.")] = Path("masks/tiny-lalm"),
    checkpoint: Annotated[Path, typer.Option(help="The embedded model.")] = Path("lalm/tiny/checkpoint"),
    num_speech: Annotated[int, typer.Option(help="Utterances to keep.")] = 10,
    num_others: Annotated[int, typer.Option(help="Overlaps, scenes and pairs of either kind to keep.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed; the corpus' own splits never use this stream.")] = 2027,
    tries: Annotated[int, typer.Option(help="Clips of a kind drawn at most.")] = 300,
) -> None:
    """Synthesise recordings and write ``expected.json``: what each task answers to each."""
    family = load_family(str(checkpoint))
    files = [MaskFile.load(path) for path in sorted(masks.glob("*.json"))]
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.wav"):
        old.unlink()
    judge = Judge(family, files, out)
    with tempfile.TemporaryDirectory() as scratch:
        drawer = Drawer(seed, Path(scratch))
        speech = judge.keep(drawer.speech(), num_speech, tries)
        overlaps = judge.keep(drawer.overlaps(), num_others, tries)
        scenes = judge.keep(drawer.scenes(), num_others, tries)
    num_pairs = judge.keep_pairs(speech, num_others)
    text = json.dumps(judge.expected, ensure_ascii=False, indent=1) + "\n"
    (out / "expected.json").write_text(text, encoding="utf-8")
    print(
        f"{out}: {len(speech)} of speech, {len(overlaps)} overlaps, {len(scenes)} scenes, {num_pairs} pairs"
    )


if __name__ == "__main__":
    typer.run(main)
