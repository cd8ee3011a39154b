"""Going on from a head mask that exists: its logits, and a recipe where there is none.

A run's folder has the logits that were kept, in its checkpoint. A mask file has one bit a head: each becomes
a logit of the size that trainings start with, positive where the head is active.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lalm import tiny
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.checkpoint import kept_logits
from training.config import TrainConfig, load_config, parse_config, with_overrides
from training.errors import CheckpointError, ConfigError


def initial_logits(config: TrainConfig, family: ModelFamily) -> Tensor | None:
    """What `run.init_from` of a recipe says to start with, float32 [num_layers, num_heads]; None without it.

    Raises:
        CheckpointError: a folder without a checkpoint, or one of another model.
        ConfigError: a mask file of another task.
        HeadMaskError: a mask file that cannot be read, or of another model: of other weights, where
            `run.init_other_weights` does not allow them.
    """
    path = config.run.init_from
    if path is None:
        return None
    if path.is_dir():
        logits, fingerprint = kept_logits(path)
        if fingerprint != family.identity.fingerprint:
            raise CheckpointError(f"{path}: made for a model with fingerprint {fingerprint}")
        return logits
    mask_file = MaskFile.load(path)
    mask_file.check_model(family.identity, path, weights=not config.run.init_other_weights)
    if mask_file.task.output != config.task.output or mask_file.task.num_audios != config.task.num_audios:
        raise ConfigError(f"{path}: answers of task {mask_file.task.name!r} have another form")
    heads = torch.from_numpy(mask_file.head_mask.heads.copy())
    size = abs(config.optim.init_mean)
    return torch.where(heads, size, -size).float()


def recipe_to_continue(
    recipe: Path | None, init_from: Path | None, manifest: Path | None, overrides: Mapping[str, Any]
) -> TrainConfig:
    """The recipe of a training that may go on from a head mask, on other data than its own.

    Without a recipe file, task and optimisation are those in the mask file `init_from`, and the new head mask
    goes to `runs/<task>-continued/<task>.json`, not over the one that is served.

    Raises:
        ConfigError: the recipe is wrong, or without one the mask file or the manifest is missing.
        HeadMaskError: the mask file cannot be read.
    """
    wanted: dict[str, Any] = {}
    if init_from is not None:
        wanted["run.init_from"] = str(init_from)
    if manifest is not None:
        wanted["data.train"] = str(manifest)
    if recipe is not None:
        config = load_config(recipe, wanted | dict(overrides))
        if init_from is None or "run.folder" in overrides:
            return config
        folder = config.run_folder.with_name(f"{config.run_folder.name}-continued")
        return config.model_copy(update={"run": config.run.model_copy(update={"folder": folder})})
    if init_from is None or init_from.is_dir() or manifest is None:
        raise ConfigError("without a recipe, --resume-from with a mask file and --manifest are needed")
    return _recipe_from(MaskFile.load(init_from), init_from, wanted | dict(overrides))


def _recipe_from(mask_file: MaskFile, path: Path, overrides: Mapping[str, Any]) -> TrainConfig:
    task, record = mask_file.task, mask_file.training
    folder = f"runs/{task.name}-continued"
    values: dict[str, Any] = {
        "preset": record.get("preset", "short"),
        "out": f"{folder}/{task.name}.json",
        "task": task.model_dump(mode="json", exclude_none=True),
        "optim": record.get("optim", {}),
        "run": {"folder": folder},
    }
    if mask_file.model.name == tiny.NAME:
        values["checkpoint"] = str(tiny.CHECKPOINT)
    elif "checkpoint" not in overrides:
        raise ConfigError(f"{path}: made for {mask_file.model.name!r}; --set checkpoint=… says where it is")
    return parse_config(with_overrides(values, overrides, str(path)), path.name)
