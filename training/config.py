"""A recipe file (TOML) -> a frozen configuration; an unknown key is an error.

Paths are relative to the folder the command runs in.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lalm.task import OutputKind, TaskSpec
from lalm.validation import reason_of
from training.errors import ConfigError
from training.metrics import TextMetric
from training.presets import PRESETS
from training.toml_file import read_toml

Amp = Literal["off", "bfloat16", "float16"]

_Positive = Annotated[int, Field(ge=1)]
_Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """The manifests of a recipe. `task` is the task's name in them, where it differs."""

    train: Path  # a manifest, or a folder of manifests of any tasks (feedback)
    valid: Path | None = None  # without one, `valid_fraction` of the training recordings is held out
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Path | None = None
    task: str | None = None
    max_train_examples: _Positive | None = None
    max_valid_examples: _Positive | None = 128
    cache_audio: bool = True  # keep every audio embedding in memory; off for corpora that do not fit
    cache_folder: Path | None = None  # keep them in files there instead, for other trainings too
    cache_max_gib: Annotated[float, Field(gt=0)] = 20.0  # how large that folder may grow
    num_workers: Annotated[int, Field(ge=0)] = 0  # processes that decode and compute features ahead


class OptimConfig(_Section):
    """The optimisation of the mask logits; the defaults are the published ones ("paper")."""

    steps: _Positive = 90_000
    batch_size: _Positive = 8  # in one forward pass of one process
    gradient_accumulation_steps: _Positive = 1  # forward passes of one process in a step
    lr: Annotated[float, Field(gt=0)] = 1e-2
    lr_start: Annotated[float, Field(ge=0)] = 1e-6
    lr_end: Annotated[float, Field(ge=0)] = 1e-4
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 3_000
    lr_decay: Literal["cosine", "linear"] = "cosine"
    lr_decay_fraction: _Fraction = 1.0  # the share of the steps, at the end, over which lr falls to lr_end
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[_Fraction, _Fraction] = (0.9, 0.999)
    init_mean: float = 4.0
    init_std: Annotated[float, Field(ge=0)] = 0.02
    tau_start: Annotated[float, Field(gt=0)] = 4.0
    tau_end: Annotated[float, Field(gt=0)] = 0.05
    tau_fraction: _Fraction = 0.3
    sparsity_lambda: Annotated[float, Field(ge=0)] = 0.0
    target_num_heads: _Positive | None = None  # the penalty is on the distance from so many sampled heads
    loss: Literal["token_mean", "sample_sum"] = "token_mean"

    @model_validator(mode="after")
    def _target_needs_lambda(self) -> Self:
        if self.target_num_heads is not None and self.sparsity_lambda == 0:
            raise ValueError("target_num_heads: has no effect while sparsity_lambda is 0")
        return self


class RefineConfig(_Section):
    """Flips of single heads after the training, each accepted where the development data says so."""

    num_candidates: _Positive = 64  # the heads whose logits are nearest to 0, each tried once
    dev: Path | None = None  # a manifest; by default the validation data
    max_dev_examples: _Positive | None = 128
    min_gain: Annotated[float, Field(ge=0)] = 0.0  # of the loss or score that head masks are selected by


class RunConfig(_Section):
    """How a training runs and what it leaves behind."""

    init_from: Path | None = None  # a mask file or a run's folder to go on from; see docs/training.md
    init_other_weights: bool = False  # that mask file may be of the model before its weights changed
    folder: Path | None = None  # checkpoints and logs; default runs/<task>
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()  # a training each; the best head mask is written
    valid_every: _Positive = 50
    checkpoint_every: _Positive = 100
    keep_best: bool = True  # False: the mask of the last step instead of the best on validation
    select_by: Literal["loss", "score"] = "loss"  # score: greedy answers on the validation data
    patience: _Positive | None = None  # stop after so many validations without a better one
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    amp: Amp = "off"  # autocast of the decoder; weights stay in dtype
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    num_threads: _Positive | None = None
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice")
        if self.patience is not None and not self.keep_best:
            raise ValueError("patience: keeps the best head mask, and keep_best is off")
        return self


class TrainConfig(_Section):
    """One recipe: a task, its data, the model, how the head mask is trained and where it goes."""

    name: str
    preset: Literal["paper", "short"]
    checkpoint: str
    revision: str | None = None
    out: Path
    instruction: str | None = None
    instructions: tuple[str, ...] = ()
    text_metric: TextMetric = "wer"
    task: TaskSpec
    data: DataConfig
    optim: OptimConfig
    run: RunConfig = RunConfig()
    refine: RefineConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optim = values.get("optim", {})
        preset = PRESETS.get(values.get("preset", ""))
        if preset is None or not isinstance(optim, dict):
            return {"optim": {}, **values}  # the field's own check says what is wrong
        return {**values, "optim": {**preset, **optim}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.instruction is not None and self.instructions:
            raise ValueError("give either instruction or instructions")
        if self.out.name != f"{self.task.name}.json":
            raise ValueError(f"out: a mask of task {self.task.name!r} goes into {self.task.name}.json")
        if self.text_metric != "wer" and self.task.output.kind is OutputKind.LABEL:
            raise ValueError("text_metric: a label has no text to score")
        return self

    @property
    def all_instructions(self) -> tuple[str, ...]:
        return self.instructions if self.instruction is None else (self.instruction,)

    @property
    def run_folder(self) -> Path:
        return self.run.folder or Path("runs") / self.task.name

    @property
    def by_seed(self) -> tuple[Self, ...]:
        """The trainings of this recipe: itself, or one a seed, each in a folder of its own."""
        if not self.run.seeds:
            return (self,)
        return tuple(
            self.model_copy(update={"run": self.run.model_copy(update=changes)})
            for changes in (
                {"seed": seed, "seeds": (), "folder": self.run_folder / f"seed-{seed}"}
                for seed in self.run.seeds
            )
        )


def parse_config(values: dict[str, Any], name: str) -> TrainConfig:
    """A recipe that was read already; `name` is what the mask file will call it.

    Raises:
        ConfigError: an unknown or missing key, or a value that is not allowed.
    """
    try:
        return TrainConfig.model_validate({**values, "name": name})
    except ValidationError as error:
        raise ConfigError(f"{name}: {reason_of(error)}") from error


def with_overrides(values: dict[str, Any], overrides: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`values` with dotted keys set: {"optim.steps": 20}; `name` is for the message.

    Raises:
        ConfigError: a key leads through something that is no section.
    """
    values = copy.deepcopy(values)
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{name}: {section} is no section, {key} cannot be set")
        target[last] = value
    return values


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a recipe file. `overrides` maps dotted keys to values: {"optim.steps": 20}.

    Raises:
        ConfigError: unreadable, not TOML, an unknown or missing key, or a value that is not allowed.
    """
    values = with_overrides(read_toml(path), overrides or {}, str(path))
    try:
        return parse_config(values, path.name)
    except ConfigError as error:
        raise ConfigError(f"{path.parent}/{error}") from error
