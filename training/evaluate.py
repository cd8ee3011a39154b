"""How well a task is done: under its head mask, other head masks, with an instruction, and with nothing.

An independent reference for the service: it shares the model and the gate with it, and decodes by plain
Hugging Face generate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile
from lalm.task import TaskSpec
from training.bench import Bench, Condition, Plan, Run
from training.config import TrainConfig
from training.errors import ConfigError
from training.manifest import Example, Manifest, load_manifest
from training.metrics.measured import NUM_RESAMPLES, Comparison, compare
from training.train import load_configured_family, subset

Split = Literal["train", "valid", "test"]
CONDITIONS: tuple[Condition, ...] = ("mask", "instruction", "random", "none")


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, and how it is decoded.

    A recipe without an instruction has no condition `instruction`; `random` draws `num_random` head masks
    with as many active heads as the task's own. `against` are mask files of the same task and model.
    """

    split: Split = "test"
    conditions: tuple[Condition, ...] = CONDITIONS
    num_random: int = 5
    num_beams: int = 1
    batch_size: int = 16
    max_examples: int | None = None
    against: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TaskEvaluation:
    """Every decoding of one task's split."""

    task: TaskSpec
    split: Split
    examples: tuple[Example, ...]
    manifest_sha256: str
    num_heads: int
    num_beams: int
    runs: tuple[Run, ...]

    def of(self, condition: Condition) -> list[Run]:
        return [run for run in self.runs if run.condition == condition]


def evaluate(
    config: TrainConfig,
    options: EvaluateOptions = EvaluateOptions(),
    *,
    family: ModelFamily | None = None,
    write: bool = False,
    console: Console | None = None,
) -> TaskEvaluation:
    """Measure the task of a recipe. With `write` the numbers of the head mask go into its mask file.

    Raises:
        TrainingError: the recipe has no such split, or its manifest cannot be used.
        HeadMaskError: a mask file cannot be used with the recipe's model.
    """
    if write and "mask" not in options.conditions:
        raise ConfigError("only numbers of the head mask are written; it is not among the conditions")
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)
    manifest = split_manifest(config, options.split)
    family = family or load_configured_family(config)
    needs_mask = {"mask", "random"} & set(options.conditions)
    mask_file = load_mask(config, config.out, family) if needs_mask else None
    others = {path: load_mask(config, path, family).head_mask for path in options.against}
    examples = tuple(subset(manifest.examples, options.max_examples))
    plans = [*_plans(config, options, mask_file)]
    plans += [Plan("other", str(path), head_mask) for path, head_mask in others.items()]
    with Progress(console=console or Console(stderr=True)) as progress:
        decoding = {"num_beams": options.num_beams, "batch_size": options.batch_size}
        bench = Bench(config, family, examples, progress, **decoding)
        runs = tuple(bench.run(plan) for plan in plans)
    identity = family.identity
    evaluation = TaskEvaluation(
        task=config.task,
        split=options.split,
        examples=examples,
        manifest_sha256=manifest.sha256,
        num_heads=identity.num_layers * identity.num_heads,
        num_beams=options.num_beams,
        runs=runs,
    )
    if write and mask_file is not None:
        mask_file.model_copy(update={"evaluation": mask_record(evaluation)}).save(config.out)
    return evaluation


def mask_record(evaluation: TaskEvaluation) -> dict[str, str | int | float]:
    """What a mask file says about its own evaluation."""
    metrics = evaluation.of("mask")[0].metrics
    return {
        **{name: round(value, 2) for name, value in metrics.items()},
        "split": evaluation.split,
        "num_examples": len(evaluation.examples),
        "num_beams": evaluation.num_beams,
        "manifest_sha256": evaluation.manifest_sha256,
    }


def comparisons(
    evaluation: TaskEvaluation, num_resamples: int = NUM_RESAMPLES
) -> Iterator[tuple[Run, list[Comparison]]]:
    """The head mask minus each instruction and each other mask, by paired bootstrap."""
    for masked in evaluation.of("mask"):
        for run in (*evaluation.of("instruction"), *evaluation.of("other")):
            pairs = zip(masked.scores.measured, run.scores.measured, strict=True)
            compared = (compare(one, two, len(evaluation.examples), num_resamples) for one, two in pairs)
            yield run, [comparison for comparison in compared if comparison is not None]


def split_manifest(config: TrainConfig, split: Split) -> Manifest:
    """The manifest of a recipe's split.

    Raises:
        ConfigError: the recipe has none.
        ManifestError: it cannot be used.
    """
    path = {"train": config.data.train, "valid": config.data.valid, "test": config.data.test}[split]
    if path is None:
        raise ConfigError(f"{config.name}: data.{split} is not given")
    return load_manifest(path, config.task, config.data.task)


def load_mask(config: TrainConfig, path: Path, family: ModelFamily) -> MaskFile:
    """A mask file for the recipe's task and model.

    Raises:
        HeadMaskError: it cannot be used, or was made for another model.
        ConfigError: its answers have another form than the recipe's.
    """
    mask_file = MaskFile.load(path)
    mask_file.check_model(family.identity, path)
    if mask_file.task.output != config.task.output:
        raise ConfigError(f"{path}: its answers have another form than those of task {config.task.name!r}")
    return mask_file


def _plans(config: TrainConfig, options: EvaluateOptions, mask_file: MaskFile | None) -> Iterator[Plan]:
    wanted = options.conditions
    if "mask" in wanted and mask_file is not None:
        yield Plan("mask", None, mask_file.head_mask)
    if "instruction" in wanted:
        for instruction in config.all_instructions:
            yield Plan("instruction", instruction, None, instruction)
    if "random" in wanted and mask_file is not None:
        own = mask_file.head_mask
        for seed in range(options.num_random):
            drawn = HeadMask.random(own.num_active, np.random.default_rng(seed), own.heads.shape)
            yield Plan("random", str(seed), drawn)
    if "none" in wanted:
        yield Plan("none")
