"""Make the recordings of ``samples/``: ``python -m training.tiny.samples``.

Held-out sentences by held-out voices, drawn with seeds of their own, so no training saw them. They are a
smoke test and a demonstration, not a benchmark: a clip is kept only if every shipped task answers it right,
as WAV and as MP3, M4A and WebM; others are passed over. The measured error rates stand in the README.
"""

from __future__ import annotations

import io
import json
import tempfile
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Annotated, Any

import av
import numpy as np
import soundfile
import torch
import typer
from numpy.typing import NDArray

from lalm.audio import decode_audio
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.generation import generate
from training.tiny.acoustics import degrade
from training.tiny.grammar import draw
from training.tiny.records import Record, answers
from training.tiny.studio import SAMPLE_RATE_HZ, Studio
from training.tiny.voices import EMOTIONS, draw_prosody, draw_speaker

ENCODINGS = (("mp3", "libmp3lame", 44_100), ("mp4", "aac", 44_100), ("webm", "libopus", 48_000))


def answer_all(family: ModelFamily, masks: list[MaskFile], wave: NDArray[np.float32]) -> dict[str, str]:
    """The answer of every task to one clip; ``wave`` float32 [num_samples], 16 kHz."""
    with torch.inference_mode():
        prompt = family.embed_prompt(family.embed_audio([family.features(wave)]))
    return {
        mask.task.name: family.decode_tokens(
            generate(family, [prompt], head_mask=mask.head_mask, max_new_tokens=mask.task.max_new_tokens)[0]
        )
        for mask in masks
    }


def as_file(wave: NDArray[np.float32], container: str, codec: str, rate_hz: int) -> bytes:
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
    count: Annotated[int, typer.Option(help="Recordings to keep.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed; the corpus' own splits never use this stream.")] = 2026,
    tries: Annotated[int, typer.Option(help="Clips drawn at most.")] = 300,
) -> None:
    """Synthesise recordings and write ``expected.json``: what each task answers to each."""
    family = load_family(str(checkpoint))
    files = [MaskFile.load(path) for path in sorted(masks.glob("*.json"))]
    tasks = [file.task.name for file in files]
    rng, noise = Random(f"samples-{seed}"), np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    expected: list[dict[str, Any]] = []
    kept: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        studio = Studio(Path(scratch))
        for number in range(tries):
            speaker, emotion = draw_speaker(rng, f"sample-{number}", "test"), rng.choice(EMOTIONS)
            sentence = draw(rng, "test")
            wave = degrade(studio.speak(sentence.english, speaker, draw_prosody(rng, emotion)), noise)
            path = out / f"{sentence.english.replace(' ', '-')}.wav"
            if path.name in kept:
                continue
            soundfile.write(path, wave, SAMPLE_RATE_HZ, subtype="PCM_16")
            stored, _ = soundfile.read(path, dtype="float32")
            truth = answers(
                Record(
                    path=path.name,
                    transcript=sentence.english,
                    translation=sentence.german,
                    gender=speaker.gender,
                    emotion=emotion,
                )
            )
            heard = [stored, *(decode_audio(as_file(stored, *encoding)) for encoding in ENCODINGS)]
            if any(answer_all(family, files, wave) != {t: truth[t] for t in tasks} for wave in heard):
                path.unlink()
                continue
            kept.add(path.name)
            for file in files:
                result = file.task.parse(truth[file.task.name]).result
                expected.append({"file": path.name, "task": file.task.name, "result": result})
            if len(kept) == count:
                break
    (out / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(kept)} of {number + 1} clips kept in {out}")


if __name__ == "__main__":
    typer.run(main)
