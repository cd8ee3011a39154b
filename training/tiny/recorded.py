"""Measure the embedded model on recordings of people: ``python -m training.tiny.recorded --help``.

Digits of the Free Spoken Digit Dataset: the share of takes of the held-out speaker whose transcript is the
digit and nothing else. Coffee orders of Picovoice's speech-to-intent benchmark, which come with slots and
no transcripts: the share of the slots' words that stand in the transcript, of the orders held out. Gender:
the share of a speaker's recordings that are answered with the right gender and nothing else, and the share
of those of which the right one is the likelier of the two labels, as the service's scores tell; for the
held-out speaker of the digits and those of Asterisk's telephone prompts, in English and other languages;
nobody of these was heard in training.

Prompts: Debian's asterisk-core-sounds-{en,es,fr,it,ru}-wav and asterisk-prompt-it-menardi-wav (CC BY-SA 3.0,
the Russian ones CC BY 3.0), which name a speaker's folder like en_US_f_Allison.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import soundfile
import torch
import typer

from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.batches import AudioEmbeddings
from training.generation import generate
from training.label_scores import label_scores
from training.manifest import Example
from training.tiny.digits import HELD_OUT_SPEAKER
from training.tiny.grammar import DIGITS
from training.tiny.orders import is_held_out, read_labels
from training.tiny.waves import read_wave


def transcripts(family: ModelFamily, mask: MaskFile, paths: Iterable[Path]) -> Iterator[str]:
    """The masked model's answer to each recording."""
    for path in paths:
        wave = read_wave(path)
        with torch.inference_mode():
            prompt = family.embed_prompt(family.embed_audio([family.features(wave)]))
            ids = generate(
                family, [prompt], head_mask=mask.head_mask, max_new_tokens=mask.task.max_new_tokens
            )
        yield family.decode_tokens(ids[0])


def slot_recall(slots: dict[str, str], transcript: str) -> tuple[int, int]:
    """How many words of the slots stand in the transcript (each as often as said), and how many there are."""
    wanted = Counter(word for value in slots.values() for word in value.lower().split())
    found = wanted & Counter(transcript.lower().split())
    return found.total(), wanted.total()


def digit_accuracy(family: ModelFamily, mask: MaskFile, folder: Path, limit: int | None) -> dict[str, float]:
    """Share of the held-out speaker's takes that are transcribed as their digit and nothing else."""
    words = list(DIGITS)
    paths = sorted(folder.glob(f"*_{HELD_OUT_SPEAKER}_*.wav"))
    paths = thinned(paths, limit)
    said = [words[int(path.stem.split("_")[0])] for path in paths]
    heard = transcripts(family, mask, paths)
    right = sum(answer == word for answer, word in zip(heard, said, strict=True))
    return {"num_examples": len(paths), "accuracy": right / max(1, len(paths))}


def order_recall(family: ModelFamily, mask: MaskFile, folder: Path, limit: int | None) -> dict[str, float]:
    """Recall of slot words over the orders held out."""
    labels = read_labels(folder)
    names = [name for name in labels if is_held_out(name)][:limit]
    found = total = 0
    heard = transcripts(family, mask, (folder / name for name in names))
    for name, answer in zip(names, heard, strict=True):
        part, whole = slot_recall(labels[name], answer)
        found, total = found + part, total + whole
    return {"num_examples": len(names), "slot_word_recall": found / max(1, total)}


def prompt_speakers(folder: Path) -> dict[str, str]:
    """The gender of each speaker whose prompts are in a folder of ``folder``, by the folder's name."""
    genders = {"f": "female", "m": "male"}
    parts = {path.name: path.name.split("_") for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: genders[part[2]] for name, part in parts.items() if len(part) == 4 and part[2] in genders}


def share_of(answer: str, answers: Iterable[str]) -> dict[str, float]:
    """How many answers are ``answer`` and nothing else."""
    right = [each == answer for each in answers]
    return {"num_examples": len(right), "accuracy": sum(right) / max(1, len(right))}


def gender_accuracy(
    family: ModelFamily, mask: MaskFile, gender: str, paths: Sequence[Path]
) -> dict[str, float]:
    """Share of the recordings that are answered with ``gender``, and of those where it is the likeliest of
    the labels of the mask's task."""
    examples = [Example(((path,),), gender, None, path, 1) for path in paths]
    audio, head_mask = AudioEmbeddings(family, examples, keep=True), mask.head_mask
    prompts = [family.embed_prompt(embeds) for embeds in audio.get(range(len(audio)))]
    answers = [
        family.decode_tokens(ids)
        for prompt in prompts
        for ids in generate(family, [prompt], head_mask=head_mask, max_new_tokens=mask.task.max_new_tokens)
    ]
    labels = mask.task.output.labels or ()
    scores = label_scores(family, audio, labels, head_mask=head_mask, instruction=None)
    likeliest = (labels[column] for column in scores.argmax(1))
    return {**share_of(gender, answers), "of_likeliest_label": share_of(gender, likeliest)["accuracy"]}


def thinned(paths: list[Path], limit: int | None) -> list[Path]:
    """About ``limit`` of them, evenly spread."""
    return paths[:: max(1, len(paths) // limit)] if limit else paths


def is_a_sentence(path: Path) -> bool:
    """Whether a prompt is speech (a folder of them is silence) and has a length that a question about it is
    asked of: 1 to 6 s."""
    duration_s: float = soundfile.info(path).duration
    return path.parent.name != "silence" and 1.0 <= duration_s <= 6.0


def main(
    digits: Annotated[Path | None, typer.Option(help="Folder of <digit>_<speaker>_<take>.wav.")] = None,
    commands: Annotated[Path | None, typer.Option(help="Folder of orders with labels.json.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder of speakers' prompts: /usr/share/asterisk/sounds.")
    ] = None,
    checkpoint: Annotated[Path, typer.Option(help="The embedded model.")] = Path("lalm/tiny/checkpoint"),
    masks: Annotated[Path, typer.Option(help="Its head masks.")] = Path("masks/tiny-lalm"),
    max_examples: Annotated[int | None, typer.Option(help="Recordings of each set at most.")] = None,
) -> None:
    """Print one JSON object: what was measured on which set."""
    family, file = load_family(str(checkpoint)), MaskFile.load(masks / "asr.json")
    results: dict[str, dict[str, float]] = {}
    if digits is not None:
        results["digits"] = digit_accuracy(family, file, digits, max_examples)
    if commands is not None:
        results["orders"] = order_recall(family, file, commands, max_examples)
    gender = MaskFile.load(masks / "gr.json")
    speakers: dict[str, tuple[str, list[Path]]] = {}
    if digits is not None:
        speakers[HELD_OUT_SPEAKER] = "male", sorted(digits.glob(f"*_{HELD_OUT_SPEAKER}_*.wav"))
    if prompts is not None:
        for name, known in prompt_speakers(prompts).items():
            wanted = [path for path in sorted((prompts / name).rglob("*.wav")) if is_a_sentence(path)]
            speakers[name] = known, wanted
    for name, (known, paths) in speakers.items():
        results[f"{known}: {name}"] = gender_accuracy(family, gender, known, thinned(paths, max_examples))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
