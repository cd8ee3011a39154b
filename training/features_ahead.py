"""Recordings decoded and their features computed, in processes of their own, before a step asks for them."""

from __future__ import annotations

import io
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lalm.family import AudioFeatures, ModelFamily
from training.errors import TrainingError
from training.manifest import Example

Features = list[AudioFeatures]  # one a recording of the example

PREFETCHED_LISTS = 4  # a worker is ahead by so many


def features_of(
    family: ModelFamily, examples: Sequence[Example], order: Iterable[Sequence[int]], num_workers: int
) -> Iterator[list[Features]]:
    """The features of the examples of each list of indices in `order`, one list at a time.

    With workers, spawned processes work on the next lists while the caller has the last one. They get the
    family without its model. Whatever their number, the result is the same.

    Raises:
        ManifestError: a recording that cannot be read or is too long.
    """
    clips = Clips(family, examples)
    loader: Iterable[list[Features | TrainingError]]
    if num_workers == 0:
        loader = ([clips[index] for index in indices] for indices in order)
    else:
        loader = DataLoader(
            clips,
            batch_sampler=_Order(order),
            num_workers=num_workers,
            collate_fn=list,
            prefetch_factor=PREFETCHED_LISTS,
            multiprocessing_context="spawn",
            worker_init_fn=_ignore_interrupts,
        )
    for made in loader:
        yield [_checked(features) for features in made]


class Clips(Dataset[Features | TrainingError]):
    """The features of an example by its index, or what is wrong with it; goes to other processes as a pickle.

    The pickle has all of the family but its model: features are computed without weights.
    """

    def __init__(self, family: ModelFamily, examples: Sequence[Example]) -> None:
        self._features: Callable[[NDArray[np.float32]], AudioFeatures] = family.features
        self._model: nn.Module | None = family.model
        self._max_audio_s = family.max_audio_s
        self._audio_input = family.audio_input
        self._examples = examples

    def __getitem__(self, index: int) -> Features | TrainingError:
        try:
            waveforms = self._examples[index].waveforms(self._max_audio_s, self._audio_input)
        except TrainingError as error:
            return error
        return [self._features(waveform) for waveform in waveforms]

    def __getstate__(self) -> dict[str, Any]:
        file = io.BytesIO()
        _WithoutModel(file, self._model).dump(self._features)
        return {**vars(self), "_features": file.getvalue(), "_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._features = _NoModel(io.BytesIO(state["_features"])).load()


class _WithoutModel(pickle.Pickler):
    """Leaves out the modules of a model, wherever they are referred to."""

    def __init__(self, file: io.BytesIO, model: nn.Module | None) -> None:
        super().__init__(file)
        self._left_out = {id(module) for module in model.modules()} if model is not None else set()

    def persistent_id(self, value: Any) -> str | None:
        return "left out" if id(value) in self._left_out else None


class _NoModel(pickle.Unpickler):
    """Puts None where a module was left out."""

    def persistent_load(self, _: str) -> None:
        return None


class _Order:
    """Lists of indices as a batch sampler."""

    def __init__(self, order: Iterable[Sequence[int]]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[list[int]]:
        return (list(indices) for indices in self._order)


def _checked(features: Features | TrainingError) -> Features:
    if isinstance(features, TrainingError):
        raise features
    return features


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C is for the training, which finishes its step with what the workers hand it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
