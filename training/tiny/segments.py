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

from training.tiny.corpus import Utterance, answers
from training.tiny.model import AUDIO_BOS, AUDIO_EOS, IM_END

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
}
TASKS = tuple(INSTRUCTIONS)
# Shares of the answers given without an instruction, by task. Transcription leads: it is the model's own
# default.
UNPROMPTED_SHARES = {"asr": 6, "gr": 1, "ser": 2, "s2tt": 2.5, "asr-gr": 1, "gr-asr": 1, "asr-gr-json": 2}
SEGMENTS_PER_ROW = 5
UNPROMPTED_PER_ROW = 3


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
    """A clip and its task segments: prompt token ids and answer token ids each; no prompt where none is
    given."""

    clip: int
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

    def draw(self, clip: int, utterance: Utterance, *, unprompted_rate: float, degrade: bool) -> Row:
        rng, texts = self._rng, answers(utterance)
        if rng.random() < unprompted_rate:
            names = rng.choices(
                list(UNPROMPTED_SHARES), list(UNPROMPTED_SHARES.values()), k=UNPROMPTED_PER_ROW
            )
            return Row(clip, [([], self._answer(texts[name])) for name in names])
        names = rng.sample(TASKS, SEGMENTS_PER_ROW)
        prompts = [[*self._ids(instruction(name, rng, degrade)), self._end] for name in names]
        return Row(clip, [(p, self._answer(texts[n])) for p, n in zip(prompts, names, strict=True)])

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


def pack(rows: list[Row], audio_lengths: list[int], tokenizer: Any) -> PackedBatch:
    """Lay out rows behind their audio; ``audio_lengths`` counts the audio tokens of each row."""
    bos, eos = tokenizer.convert_tokens_to_ids([AUDIO_BOS, AUDIO_EOS])
    sizes = [
        n + 2 + sum(len(p) + len(a) for p, a in row.segments)
        for row, n in zip(rows, audio_lengths, strict=True)
    ]
    shape = (len(rows), max(sizes))
    ids, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    weights, positions = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    segment_of = torch.full(shape, -1)
    audio = torch.zeros(shape, dtype=torch.bool)
    for b, (row, n) in enumerate(zip(rows, audio_lengths, strict=True)):
        prefix = n + 2
        ids[b, 0], ids[b, n + 1], audio[b, 1 : n + 1] = bos, eos, True
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
