"""Examples -> tensors: audio embeddings, computed once, and batches of prompts with their answers.

The audio encoder is frozen and the head mask acts behind it, so an audio embedding is the same in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lalm.family import AudioFeatures, ModelFamily
from training.manifest import Example

ENCODER_BATCH = 8
END = -1  # target of the position behind the answer: any of the model's end tokens


class AudioEmbeddings:
    """The audio embeddings of examples, by index; with `keep` each is computed once and stays in memory."""

    def __init__(self, family: ModelFamily, examples: Sequence[Example], *, keep: bool) -> None:
        self._family = family
        self._examples = examples
        self._keep = keep
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._examples)

    def get(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """For each index one tensor an audio input, [num_audio_tokens, hidden], model dtype, on its device.

        Raises:
            ManifestError: a recording that cannot be read or is too long.
        """
        missing = [index for index in indices if index not in self._kept]
        made = dict(zip(missing, self._embed(missing), strict=True))
        if self._keep:
            self._kept.update(made)
        return [made[index] if index in made else self._kept[index] for index in indices]

    def warm(self) -> Iterator[int]:
        """Compute what is to be kept; yields the number of examples done after each batch."""
        if self._keep:
            for start in range(0, len(self), ENCODER_BATCH):
                indices = range(start, min(start + ENCODER_BATCH, len(self)))
                self.get(indices)
                yield len(indices)

    def num_tokens(self, index: int) -> int:
        """Audio tokens of an example that is kept, 0 of others."""
        return sum(len(embeds) for embeds in self._kept.get(index, ()))

    def _embed(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        inputs: list[list[AudioFeatures]] = []
        for index in indices:
            waveforms = self._examples[index].waveforms(self._family.max_audio_s, self._family.audio_input)
            inputs.append([self._family.features(waveform) for waveform in waveforms])
        flat = [features for audios in inputs for features in audios]
        embeds: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(flat), ENCODER_BATCH):
                padded = self._family.embed_audio(flat[start : start + ENCODER_BATCH])
                embeds += [clip.clone() for clip in padded]  # or a row would keep its whole batch in memory
        remaining = iter(embeds)
        return [tuple(next(remaining) for _ in audios) for audios in inputs]


@dataclass(frozen=True)
class Batch:
    """Prompts of audio alone, each followed by its answer, padded on the right.

    Attention is causal, so what stands in a row sees nothing of the padding behind it.

    inputs_embeds: [batch, length, hidden], model dtype
    rows, positions, targets: int64 [num_targets]; the hidden state at (row, position) predicts the target
    token, or `END`
    """

    inputs_embeds: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        return int(self.inputs_embeds.shape[0])


class AnswerData:
    """Examples of one task, ready to be put into batches."""

    def __init__(self, family: ModelFamily, examples: Sequence[Example], *, keep_audio: bool) -> None:
        self._family = family
        self.examples = examples
        self.audio = AudioEmbeddings(family, examples, keep=keep_audio)
        self._answers = [family.encode_text(example.text) for example in examples]

    def lengths(self) -> list[int]:
        """Tokens of each example, so far as its audio is known."""
        return [self.audio.num_tokens(index) + len(ids) for index, ids in enumerate(self._answers)]

    def num_targets(self, indices: Sequence[int]) -> int:
        """Tokens to be predicted in the answers of `indices`, their ends too."""
        return sum(len(self._answers[index]) + 1 for index in indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples `indices` as a batch on the device of the model."""
        device = self._family.device
        embed_tokens = self._family.decoder.get_input_embeddings()
        sequences, positions = [], []
        with torch.no_grad():
            for index, audio in zip(indices, self.audio.get(indices), strict=True):
                prompt = self._family.embed_prompt(audio)
                ids = torch.tensor(self._answers[index], dtype=torch.long, device=device)
                sequences.append(torch.cat([prompt, embed_tokens(ids).to(prompt.dtype)]))
                positions.append(torch.arange(len(prompt) - 1, len(sequences[-1]), device=device))
        targets = [[*self._answers[index], END] for index in indices]
        rows = [torch.full_like(row, number) for number, row in enumerate(positions)]
        return Batch(
            inputs_embeds=pad_sequence(sequences, batch_first=True),
            rows=torch.cat(rows),
            positions=torch.cat(positions),
            targets=torch.tensor([target for row in targets for target in row], device=device),
        )
