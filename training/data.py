"""What a training learns from and is measured on, with its audio embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.progress import Progress

from lalm.family import ModelFamily
from training.batches import AnswerData, AudioEmbeddings
from training.config import TrainConfig
from training.embedding_store import open_store
from training.manifest import Manifest
from training.processes import Processes
from training.splits import load_splits


@dataclass(frozen=True)
class TrainData:
    """The data of a training by its use, and the manifests it is from.

    "train", "valid", and "dev" where head masks are refined on data of their own.
    """

    manifests: Mapping[str, Manifest]
    parts: Mapping[str, AnswerData]

    @property
    def train(self) -> AnswerData:
        return self.parts["train"]

    @property
    def valid(self) -> AnswerData:
        return self.parts["valid"]

    @property
    def dev(self) -> AnswerData:
        """What refinement is measured on."""
        return self.parts.get("dev", self.valid)


def load_data(
    config: TrainConfig, family: ModelFamily, processes: Processes, progress: Progress
) -> TrainData:
    """Read the manifests of a recipe and compute the audio embeddings that are kept.

    Raises:
        ManifestError: a manifest or a recording cannot be used.
    """
    data = config.data
    manifests = load_splits(config)
    store = open_store(data, family, processes)
    audios = {
        name: AudioEmbeddings(
            family,
            manifest.examples,
            keep=data.cache_audio and store is None,
            store=store,
            num_workers=data.num_workers,
        )
        for name, manifest in manifests.items()
    }
    for name, audio in audios.items() if data.cache_audio or store is not None else ():
        bar = progress.add_task(f"audio embeddings: {name}", total=len(audio), state="")
        for done in audio.warm(processes):
            progress.advance(bar, done)
    if store is not None:
        progress.console.print(store.describe(), highlight=False, soft_wrap=True)
    return TrainData(manifests, {name: AnswerData(family, audio) for name, audio in audios.items()})
