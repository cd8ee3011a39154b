"""The models of several recipes, each loaded when it is needed; recipes of one model in a row share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lalm.family import ModelFamily
from training.config import TrainConfig
from training.train import load_configured_family


def shared_families(configs: Iterable[TrainConfig]) -> Iterator[tuple[TrainConfig, ModelFamily]]:
    """Each recipe with its model."""
    loaded: tuple[object, ModelFamily] | None = None
    for config in configs:
        which = (config.checkpoint, config.revision, config.run.device, config.run.dtype)
        if loaded is None or loaded[0] != which:
            loaded = (which, load_configured_family(config))
        yield config, loaded[1]
