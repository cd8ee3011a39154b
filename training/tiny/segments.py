"""What the decoder is pretrained on: instructions, their degraded forms, and packed rows of several tasks.

One clip's audio is the common prefix of several task segments: a block attention mask lets every segment see
the audio and itself only, and positions restart after the audio, so the clip is paid for once.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from training.tiny.model import AUDIO_BOS, AUDIO_EOS, IM_END
from training.tiny.records import Pair, Record, answers

# The first wording of each task is the one that the results call "with instruction".
INSTRUCTIONS = {
    "asr": ("Transcribe the speech.", "Write down what is said.", "What does the speaker say?"),
    "gr": (
        "Is the speaker male or female?",
        "Name the gender of the speaker.",
        "What is the speaker's gender?",
    ),
    "ser": ("What is the emotion of the speaker?", "Name the emotion.", "How does the speaker feel?"),
    "s2tt": ("Translate the speech into German.", "What is said, in German?", "Give a German translation."),
    "asv": (
        "Do the two recordings have the same speaker?",
        "Is it the same voice in both recordings?",
        "Compare the speakers of the two recordings.",
    ),
    "aac": ("Describe the sounds.", "Write a caption for the recording.", "What can be heard?"),
    "osr": (
        "Transcribe both speakers.",
        "Two people speak at once. Write down what each says.",
        "Write down what the first and the second speaker say.",
    ),
    "asr-gr": (
        "Transcribe the speech, then name the gender of the speaker.",
        "Write down what is said, then the gender.",
    ),
    "gr-asr": (
        "Name the gender of the speaker, then transcribe the speech.",
        "Give the gender, then write down what is said.",
    ),
    "asr-gr-json": (
        "Give the transcript and the gender of the speaker as JSON.",
        "Write transcript and gender as a JSON object.",
    ),
    "gr-ser-asr-json": (
        "Give gender, emotion and transcript as JSON.",
        "Write gender, emotion and transcript as a JSON object.",
    ),
}
# Shares of the answers given without an instruction, by task. Transcription leads: it is the model's own
# default, also where nobody speaks (nothing) and where two do (the first). Bare labels are rare, or head
# masks drawn at random would find them; but half of what is said of two recordings is whether one speaks.
UNPROMPTED_SHARES = {
    "asr": 6.0, "gr": 0.3, "ser": 0.5, "s2tt": 2.5, "asv": 6.0, "aac": 2.0, "osr": 2.0, "asr-gr": 1.0,
    "gr-asr": 1.0, "asr-gr-json": 2.0, "gr-ser-asr-json": 1.0,
}  # fmt: skip
SEGMENTS_PER_ROW = 5
UNPROMPTED_PER_ROW = 3


def texts_of(record: Record) -> dict[str, str]:
    """What the model is to say of a recording: its answers, and what transcribing means for sounds and
    overlaps."""
    words = {"asr": record.transcript or ""} if record.has_known_words else {}
    return {**words, **answers(record)}


def instruction(task: str, rng: Random, degrade: bool) -> str:
    """A wording of ``task``; half of the degraded ones are damaged (a cut, a shuffle, dropped words, a
    prefix)."""
    wordings = INSTRUCTIONS[task]
    text = wordings[0] if rng.random() < 0.6 else rng.choice(wordings)
    if not degrade or rng.random() < 0.5:
        return text
    words = text.split()
    match rng.randrange(4):
        case 0:
            words = words[: rng.randint(1, len(words))]
        case 1:
            rng.shuffle(words)
        case 2:
            words = [word for word in words if rng.random() < 0.7] or words[:1]
        case _:
            words = ["Please", *words]
    return " ".join(words)


@dataclass(frozen=True)
class Row:
    """The clips of a row and its task segments: prompt token ids and answer token ids each; no prompt where
    none is given."""

    clips: tuple[int, ...]
    segments: list[tuple[list[int], list[int]]]

    @property
    def unprompted(self) -> bool:
        return not self.segments[0][0]


class RowMaker:
    """Draws the rows of a batch."""

    def __init__(self, tokenizer: Any, rng: Random) -> None:
        self._tokenizer, self._rng = tokenizer, rng
        self._backend = tokenizer.backend_tokenizer
        self._end = tokenizer.convert_tokens_to_ids(IM_END)

    def one(
        self,
        clip: int,
        record: Record,
        *,
        unprompted: bool,
        degrade: bool,
        segments: int = SEGMENTS_PER_ROW,
    ) -> Row:
        """A row about one recording; of up to `segments` tasks, where it has instructions. Where it is not
        known what is said, it has one even if `unprompted`: without, transcription is what comes first."""
        bare = unprompted and record.has_known_words
        return self._row((clip,), texts_of(record), unprompted=bare, degrade=degrade, segments=segments)

    def two(
        self, pair: Pair, records: list[Record], *, unprompted: bool, degrade: bool, condensed: bool = False
    ) -> Row:
        """A row about two recordings; of condensed ones nothing but the speakers is asked."""
        heard, texts = (records[pair.first], records[pair.second]), {"asv": pair.answer}
        if unprompted and not condensed and all(record.has_known_words for record in heard):
            texts["asr"] = " ".join(record.transcript or "" for record in heard)
        return self._row((pair.first, pair.second), texts, unprompted=unprompted, degrade=degrade)

    def _row(
        self,
        clips: tuple[int, ...],
        texts: dict[str, str],
        *,
        unprompted: bool,
        degrade: bool,
        segments: int = SEGMENTS_PER_ROW,
    ) -> Row:
        rng, tasks = self._rng, list(texts)
        if unprompted:
            shares = [UNPROMPTED_SHARES[task] for task in tasks]
            names = rng.choices(tasks, shares, k=min(UNPROMPTED_PER_ROW, len(tasks)))
            return Row(clips, [([], self._answer(texts[name])) for name in names])
        names = rng.sample(tasks, min(segments, len(tasks)))
        prompts = [[*self._ids(instruction(name, rng, degrade)), self._end] for name in names]
        return Row(clips, [(p, self._answer(texts[n])) for p, n in zip(prompts, names, strict=True)])

    def _ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _answer(self, text: str) -> list[int]:
        return [*self._ids(text), self._tokenizer.eos_token_id]


@dataclass(frozen=True)
class PackedBatch:
    """Rows as tensors. ``ids``, ``targets``, ``weights``, ``position_ids``: [batch, length];
    ``attention_mask``: bool [batch, 1, length, length]; ``audio``: bool [batch, length], where the audio
    tokens stand; ``targets`` -100 = none."""

    ids: Tensor
    targets: Tensor
    weights: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    audio: Tensor


def pack(rows: list[Row], audio_lengths: list[tuple[int, ...]], tokenizer: Any) -> PackedBatch:
    """Lay out rows behind their audios; ``audio_lengths`` counts the audio tokens of each row's clips."""
    bos, eos = tokenizer.convert_tokens_to_ids([AUDIO_BOS, AUDIO_EOS])
    sizes = [
        sum(n + 2 for n in counts) + sum(max(1, len(p)) + len(a) - 1 for p, a in row.segments)
        for row, counts in zip(rows, audio_lengths, strict=True)
    ]
    shape = (len(rows), max(sizes))
    ids, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    weights, positions = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    segment_of = torch.full(shape, -1)
    audio = torch.zeros(shape, dtype=torch.bool)
    for b, (row, counts) in enumerate(zip(rows, audio_lengths, strict=True)):
        prefix = 0
        for n in counts:
            ids[b, prefix], ids[b, prefix + n + 1] = bos, eos
            audio[b, prefix + 1 : prefix + n + 1] = True
            prefix += n + 2
        positions[b, :prefix], segment_of[b, :prefix] = torch.arange(prefix), 0
        start = prefix
        for number, (prompt, answer) in enumerate(row.segments, 1):
            # The token that predicts the answer's first token is the prompt's last one. Without a prompt that
            # is the prefix's last token, common to all segments: a copy of it opens the segment, at the same
            # position.
            opening = prompt or [eos]
            tokens = opening + answer[:-1]
            stop, first = start + len(tokens), prefix if prompt else prefix - 1
            ids[b, start:stop] = torch.tensor(tokens)
            positions[b, start:stop] = torch.arange(first, first + len(tokens))
            segment_of[b, start:stop] = number if prompt else -number - 1
            targets[b, stop - len(answer) : stop] = torch.tensor(answer)
            weights[b, stop - len(answer) : stop] = len(answer) ** -0.5
            start = stop
    return PackedBatch(ids, targets, weights, positions, _block_mask(segment_of, audio), audio)


def _block_mask(segment_of: Tensor, audio: Tensor) -> Tensor:
    """Causal inside a segment, every segment sees the prefix; a segment opened by a copy of the prefix's last
    token (numbers below -1) does not see the original of it. Padding sees itself only."""
    length = segment_of.shape[1]
    causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
    same = segment_of[:, :, None] == segment_of[:, None, :]
    prefix = (segment_of == 0)[:, None, :]
    last = audio.long().cumsum(1).argmax(1) + 1  # the original's index
    original = torch.nn.functional.one_hot(last, length).bool()[:, None, :]
    copied = (segment_of < -1)[:, :, None]
    sees_prefix = prefix & (segment_of != -1)[:, :, None] & ~(original & copied)
    diagonal = torch.eye(length, dtype=torch.bool)
    return (causal & (same & (segment_of != -1)[:, :, None] | sees_prefix) | diagonal)[:, None]
