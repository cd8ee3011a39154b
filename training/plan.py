"""Which examples make which step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BUCKET_BATCHES = 8  # batches are cut from stretches of this many, sorted by length


class BatchPlan:
    """Which examples make the batch of which step: shuffled anew each epoch, of like length in a batch.

    A function of (lengths, batch size, seed) alone, so a resumed training sees the same batches. What does
    not fill a batch at the end of an epoch waits for the next one. The batch is that of all processes and
    all forward passes of a step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if not lengths:
            raise ValueError("there is no example")
        self._lengths = lengths
        self._batch_size = min(batch_size, len(lengths))
        self._seed = seed
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def batches_per_epoch(self) -> int:
        return len(self._lengths) // self._batch_size

    def indices(self, step: int) -> list[int]:
        """The examples of `step` (from 0)."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][position]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, epoch])
        size = self._batch_size
        order = rng.permutation(len(self._lengths)).tolist()[: self.batches_per_epoch * size]
        stretch = size * BUCKET_BATCHES
        batches: list[list[int]] = []
        for start in range(0, len(order), stretch):
            part = sorted(order[start : start + stretch], key=self._lengths.__getitem__)
            batches += [part[cut : cut + size] for cut in range(0, len(part), size)]
        return [batches[number] for number in rng.permutation(len(batches))]


def forward_passes(batch: int, batch_size: int) -> list[slice]:
    """The batch of a step, cut into parts of at most `batch_size`."""
    return [slice(start, min(start + batch_size, batch)) for start in range(0, batch, batch_size)]
