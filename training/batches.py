"""Examples -> tensors: audio embeddings, computed once, and batches of prompts with their answers.

The audio encoder is frozen and the head mask acts behind it, so an audio embedding is the same in every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lalm.family import ModelFamily
from training.embedding_store import EmbeddingStore
from training.features_ahead import Features, features_of
from training.lengths import EstimatedLengths
from training.manifest import Example
from training.processes import ALONE, Processes

ENCODER_BATCH = 8
END = -1  # target of the position behind the answer: any of the model's end tokens


class AudioEmbeddings:
    """The audio embeddings of examples, by index.

    keep: each is computed once and stays in memory.
    store: each is computed once and stays there, and is read when it is asked for.
    num_workers: processes that decode and compute features ahead of `warm` and `stream`.
    """

    def __init__(
        self,
        family: ModelFamily,
        examples: Sequence[Example],
        *,
        keep: bool,
        store: EmbeddingStore | None = None,
        num_workers: int = 0,
    ) -> None:
        self._family = family
        self.examples = examples
        self._keep = keep
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._store = store
        self._keys = store.keys(examples) if store is not None else []
        self._num_workers = num_workers
        self._lengths = EstimatedLengths(family, examples)

    def __len__(self) -> int:
        return len(self.examples)

    def get(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """For each index one tensor an audio input, [num_audio_tokens, hidden], model dtype, on its device.

        Raises:
            ManifestError: a recording that cannot be read or is too long.
        """
        return next(self._stream([indices], num_workers=0))

    def stream(self, order: Iterable[Sequence[int]]) -> Iterator[list[tuple[Tensor, ...]]]:
        """`get` for each of the lists of `order`; workers are ahead with what has to be computed."""
        complete = all(map(self._has, range(len(self))))
        return self._stream(order, num_workers=0 if complete else self._num_workers)

    def warm(self, processes: Processes = ALONE) -> Iterator[int]:
        """Compute what is to be kept; yields the number of examples done after each batch.

        What is kept in a store is computed by one of the processes.
        """
        starts = range(0, len(self), ENCODER_BATCH)
        batches = [range(start, min(start + ENCODER_BATCH, len(self))) for start in starts]
        if self._store is not None:
            batches = list(processes.share(batches))
        if self._keep or self._store is not None:
            for embeds in self.stream(batches):
                yield len(embeds)
        processes.wait()

    def num_tokens(self, index: int) -> int:
        """Audio tokens of an example: exact if it is in memory, else estimated from its files' headers.

        What is in a store makes no difference, so that batches do not depend on it.
        """
        kept = self._kept.get(index)
        return self._lengths[index] if kept is None else sum(len(embeds) for embeds in kept)

    def _has(self, index: int) -> bool:
        return index in self._kept or (self._store is not None and self._store.has(self._keys[index]))

    def _stream(
        self, order: Iterable[Sequence[int]], *, num_workers: int
    ) -> Iterator[list[tuple[Tensor, ...]]]:
        order, ahead = tee(order)
        asked: deque[list[int]] = deque()

        def missing() -> Iterator[list[int]]:
            for indices in ahead:
                asked.append([index for index in indices if not self._has(index)])
                yield asked[-1]

        features = features_of(self._family, self.examples, missing(), num_workers)
        for indices, computed in zip(order, features, strict=True):
            made = dict(zip(asked.popleft(), embed(self._family, computed), strict=True))
            for index, embeds in made.items():
                self._remember(index, embeds)
            yield [made[index] if index in made else self._found(index) for index in indices]

    def _remember(self, index: int, embeds: tuple[Tensor, ...]) -> None:
        if self._keep:
            self._kept[index] = embeds
        elif self._store is not None:
            self._store.save(self._keys[index], embeds)

    def _found(self, index: int) -> tuple[Tensor, ...]:
        """What `_has`, or had until something removed or damaged it."""
        embeds = self._kept.get(index)
        if embeds is None and self._store is not None:
            embeds = self._store.load(self._keys[index], self._family.device)
        if embeds is None:
            (features,) = features_of(self._family, self.examples, [[index]], 0)
            (embeds,) = embed(self._family, features)
        return embeds


def embed(family: ModelFamily, clips: Sequence[Features]) -> list[tuple[Tensor, ...]]:
    """One tensor an audio input of each clip, [num_audio_tokens, hidden]."""
    flat = [features for audios in clips for features in audios]
    embeds: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(flat), ENCODER_BATCH):
            padded = family.embed_audio(flat[start : start + ENCODER_BATCH])
            embeds += [clip.clone() for clip in padded]  # or a row would keep its whole batch in memory
    remaining = iter(embeds)
    return [tuple(next(remaining) for _ in audios) for audios in clips]


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
    """Examples of one task with their audio embeddings, ready to be put into batches."""

    def __init__(self, family: ModelFamily, audio: AudioEmbeddings) -> None:
        self._family = family
        self.examples = audio.examples
        self.audio = audio
        self._answers = [family.encode_text(example.text) for example in audio.examples]

    def lengths(self) -> list[int]:
        """Tokens of each example, audio and answer; see `AudioEmbeddings.num_tokens`."""
        return [self.audio.num_tokens(index) + len(ids) for index, ids in enumerate(self._answers)]

    def num_targets(self, indices: Sequence[int]) -> int:
        """Tokens to be predicted in the answers of `indices`, their ends too."""
        return sum(len(self._answers[index]) + 1 for index in indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples `indices` as a batch on the device of the model."""
        return self._batch(indices, self.audio.get(indices))

    def stream(self, order: Iterable[Sequence[int]]) -> Generator[Batch, None, None]:
        """`batch` for each of the lists of `order`; workers are ahead with what has to be computed."""
        order, again = tee(order)
        for indices, audios in zip(order, self.audio.stream(again), strict=True):
            yield self._batch(indices, audios)

    def _batch(self, indices: Sequence[int], audios: Sequence[tuple[Tensor, ...]]) -> Batch:
        device = self._family.device
        embed_tokens = self._family.decoder.get_input_embeddings()
        sequences, positions = [], []
        with torch.no_grad():
            for index, audio in zip(indices, audios, strict=True):
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
