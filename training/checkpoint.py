"""The state of a training on disk, and its log; an interrupted training goes on exactly where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from training.errors import CheckpointError
from training.mask_logits import MaskLogits

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass
class Selected:
    """The mask logits to be kept, float32 [num_layers, num_heads], and why; a lower `value` is better."""

    step: int
    value: float
    logits: Tensor


@dataclass
class TrainState:
    """Everything that changes during a training.

    step: the number of steps done.
    num_stale: validations in a row that found nothing better.
    """

    mask_logits: MaskLogits
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    selected: Selected | None = None
    num_stale: int = 0

    def save(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Write the state, whole or not at all. `recipe` is what has to be the same to go on."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "recipe": json.dumps(recipe, sort_keys=True),
            "step": self.step,
            "logits": self.mask_logits.logits.detach().cpu(),
            "generator": self.mask_logits.generator.get_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "selected": vars(self.selected) if self.selected else None,
            "num_stale": self.num_stale,
        }
        temporary = folder / f".{CHECKPOINT}.partial"
        torch.save(content, temporary)
        temporary.replace(folder / CHECKPOINT)

    def restore(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            CheckpointError: there is none, it cannot be read, or it was made with another recipe.
        """
        content, theirs = _read(folder)
        keys = sorted(key for key in {*theirs, *recipe} if theirs.get(key) != recipe.get(key))
        if keys:
            raise CheckpointError(
                f"{folder / CHECKPOINT}: made with another recipe ({', '.join(keys)} differ)"
            )
        with torch.no_grad():
            self.mask_logits.logits.copy_(content["logits"])
        self.mask_logits.generator.set_state(content["generator"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
        self.selected = Selected(**content["selected"]) if content["selected"] else None
        self.num_stale = content["num_stale"]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a checkpoint and its recipe."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content, json.loads(content["recipe"])
    except Exception as error:  # torch.load raises whatever a damaged file makes it raise
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error


def kept_logits(folder: Path) -> tuple[Tensor, str]:
    """The logits that a run has kept so far, float32 [num_layers, num_heads], and its model's fingerprint.

    Raises:
        CheckpointError: there is no checkpoint, it cannot be read, or nothing was kept yet.
    """
    content, recipe = _read(folder)
    if content["selected"] is None:
        raise CheckpointError(f"{folder / CHECKPOINT}: no head mask was kept yet")
    return content["selected"]["logits"].float(), recipe["fingerprint"]


def has_checkpoint(folder: Path) -> bool:
    """Whether a training in `folder` can be resumed."""
    return (folder / CHECKPOINT).is_file()


class TrainLog:
    """One JSON object a step, in `folder`/log.jsonl; optionally tensorboard files beside it.

    Without a folder nothing is written: processes beside the main one.
    """

    def __init__(self, folder: Path | None, from_step: int, *, tensorboard: bool) -> None:
        self._file, self._board = None, None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        kept = path.read_text(encoding="utf-8").splitlines() if from_step and path.is_file() else []
        kept = [line for line in kept if json.loads(line)["step"] <= from_step]
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(line + "\n" for line in kept)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

            self._board = SummaryWriter(str(folder), purge_step=from_step or None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
