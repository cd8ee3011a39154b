"""What is written down of a training: what determines it, and the mask file that it ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.checkpoint import Selected
from training.config import TrainConfig
from training.data import TrainData
from training.mask_logits import binarise
from training.processes import Processes
from training.step import step_batch_size

_RUN_KEYS = {
    "seed",
    "valid_every",
    "select_by",
    "keep_best",
    "patience",
    "dtype",
    "amp",
    "init_from",
    "init_other_weights",
}


def recipe_of(
    config: TrainConfig, family: ModelFamily, data: TrainData, processes: Processes
) -> dict[str, Any]:
    """What determines the result, as JSON values; how a step is cut into processes and passes does not."""
    kept = config.model_dump(mode="json", include={"task", "optim", "preset"})
    kept["optim"]["batch_size"] = step_batch_size(config.optim, processes)
    del kept["optim"]["gradient_accumulation_steps"]
    run = config.run.model_dump(mode="json", include=_RUN_KEYS)
    limits = config.data.model_dump(include={"max_train_examples", "max_valid_examples"})
    limits["cache_audio"] = config.data.cache_audio and config.data.cache_folder is None
    sha256 = {name: data.manifests[name].sha256 for name in ("train", "valid")}
    return {**kept, **run, **limits, "fingerprint": family.identity.fingerprint, "manifest_sha256": sha256}


def write_mask(
    path: Path,
    config: TrainConfig,
    family: ModelFamily,
    data: TrainData,
    selected: Selected,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the head mask of `selected`, with how it was made and what `further` says of it."""
    mask_file = MaskFile(
        task=config.task,
        model=family.identity,
        heads=tuple(binarise(selected.logits).to_strings()),
        training={
            "recipe": config.name,
            "preset": config.preset,
            "seed": config.run.seed,
            "optim": config.optim.model_dump(mode="json"),
            "selected_step": selected.step,
            f"validation_{config.run.select_by}": validation_of(config, selected),
            "train_manifest_sha256": data.manifests["train"].sha256,
            "valid_manifest_sha256": data.manifests["valid"].sha256,
            "num_train_examples": len(data.train.examples),
            "num_valid_examples": len(data.valid.examples),
            **({} if config.run.init_from is None else {"init_from": config.run.init_from.name}),
            **further,
        },
        evaluation={},
    )
    mask_file.save(path)


def validation_of(config: TrainConfig, selected: Selected) -> float:
    """What the head mask was selected by: the validation loss, or the score."""
    return selected.value if config.run.select_by == "loss" else -selected.value
