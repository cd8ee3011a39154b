"""Spoken coffee orders of people, which come with slots and without transcripts, as records to train on.

Of many orders that the grammar can make of a recording's slots, the one that the trained encoder finds
likeliest is taken as its transcript. Who speaks is not told either: a low voice is taken for a man's and a
high one for a woman's. A quarter of the recordings is held out, to measure with.

Source of the recordings: Picovoice's speech-to-intent benchmark (Apache-2.0).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from lalm.speech import split_at_pauses
from training.tiny.coffee import draw_order_of
from training.tiny.encoder_stage import EncoderStage
from training.tiny.features import Corpus, feature_extractor, log_mel
from training.tiny.listener import LETTERS
from training.tiny.records import Record
from training.tiny.studio import median_pitch_hz
from training.tiny.waves import Wave, read_wave

NUM_DRAWS = 400
MAX_SPEECH_S = 30.0
MALE_BELOW_HZ, FEMALE_ABOVE_HZ = 150.0, 185.0  # median pitch; 45 of 258 recordings are between
MAX_NATS_PER_LETTER = 2.0  # of the likeliest order; where no order fits better, something else was said


def is_held_out(name: str) -> bool:
    """Whether a recording is kept to measure with: every fourth, by a hash of its name."""
    return hashlib.sha256(name.encode()).digest()[0] < 64


def read_labels(folder: Path) -> dict[str, dict[str, str]]:
    """The slots of each recording by its file's name.

    Raises:
        FileNotFoundError: the folder has no ``labels.json``.
    """
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return {name: labels[name]["slots"] for name in sorted(labels)}


def without_silence(wave: Wave) -> Wave:
    """From the beginning of speech to its end, or all of it where no speech is found."""
    spans = split_at_pauses(wave, MAX_SPEECH_S)
    return wave[spans[0].start : spans[-1].end] if spans else wave


def likely_gender(pitch_hz: float) -> str | None:
    """Of a grown-up, by the median pitch; None where that does not tell."""
    if pitch_hz < MALE_BELOW_HZ:
        return "male"
    return "female" if pitch_hz > FEMALE_ABOVE_HZ else None


def transcribed_orders(folder: Path, encoder: EncoderStage, seed: int) -> Corpus:
    """The recordings that are not held out, with the transcripts that fit them best.

    Each stands there twice: as it is, and without the silence around the speech.
    """
    records, mels, extractor = [], [], feature_extractor()
    for name, slots in read_labels(folder).items():
        if is_held_out(name):
            continue
        rng = Random(f"{seed}-{name}")
        orders = sorted({draw_order_of(slots, rng) for _ in range(NUM_DRAWS)})
        wave = read_wave(folder / name)
        speech = without_silence(wave)
        mel = log_mel(speech, extractor)
        nats = negative_log_likelihoods(encoder.letter_log_probs(mel), [english for english, _ in orders])
        english, german = orders[int(nats.argmin())]
        if float(nats.min()) <= MAX_NATS_PER_LETTER * len(english):
            record = Record(
                path=str(folder / name),
                transcript=english,
                translation=german,
                gender=likely_gender(median_pitch_hz(speech)),
            )
            records += [record] * 2
            mels += [mel, log_mel(wave, extractor)]
    return Corpus(records, mels, [])


def negative_log_likelihoods(log_probs: Tensor, texts: list[str]) -> Tensor:
    """How unlikely each text is by CTC, in nats: float32 [len(texts)].

    log_probs: [num_frames, letters and blank].
    """
    spelled = [torch.tensor([LETTERS.index(c) for c in text]) for text in texts]
    sizes = torch.tensor([len(text) for text in texts])
    frames = torch.full((len(texts),), len(log_probs))
    repeated = log_probs[:, None].expand(-1, len(texts), -1)
    return F.ctc_loss(repeated, torch.cat(spelled), frames, sizes, log_probs.shape[1] - 1, reduction="none")
