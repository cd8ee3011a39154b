"""How well a task is done: under its head mask, with an instruction, under random masks, and with nothing.

An independent reference for the service: it shares the model and the gate with it, and decodes by plain
Hugging Face generate.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile
from lalm.task import TaskSpec
from training.batches import AudioEmbeddings
from training.config import TrainConfig
from training.errors import ConfigError
from training.generation import answers_of
from training.manifest import Example, Manifest, load_manifest
from training.scores import score
from training.train import load_configured_family, subset

Condition = Literal["mask", "instruction", "random", "none"]
Split = Literal["train", "valid", "test"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, and how it is decoded.

    A recipe without an instruction has no condition `instruction`; `random` draws `num_random` head masks
    with as many active heads as the task's own.
    """

    split: Split = "test"
    conditions: tuple[Condition, ...] = CONDITIONS
    num_random: int = 5
    num_beams: int = 1
    batch_size: int = 16
    max_examples: int | None = None


@dataclass(frozen=True)
class Run:
    """One decoding of a split; `detail` is the instruction, or the seed of a random head mask."""

    condition: Condition
    detail: str | None
    num_active: int
    metrics: dict[str, float]
    answers: tuple[str, ...]


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


@dataclass(frozen=True)
class _Plan:
    """What distinguishes the runs of a task."""

    condition: Condition
    detail: str | None
    head_mask: HeadMask | None
    instruction: str | None


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
        HeadMaskError: the recipe's mask file cannot be used with its model.
    """
    if write and "mask" not in options.conditions:
        raise ConfigError("only numbers of the head mask are written; it is not among the conditions")
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)
    manifest = _split_manifest(config, options.split)
    family = family or load_configured_family(config)
    mask_file = _mask_file(config, family) if {"mask", "random"} & set(options.conditions) else None
    examples = tuple(subset(manifest.examples, options.max_examples))
    audio = AudioEmbeddings(family, examples, keep=config.data.cache_audio)
    plans = list(_plans(config, options, mask_file))
    with Progress(console=console or Console(stderr=True)) as progress:
        bar = progress.add_task(f"audio embeddings: {config.task.name}", total=len(examples))
        for done in audio.warm():
            progress.advance(bar, done)
        runs = tuple(_run(config, options, family, audio, examples, plan, progress) for plan in plans)
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


def write_answers(evaluations: Collection[TaskEvaluation], path: Path) -> None:
    """Every answer of every run, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for evaluation in evaluations:
            for run in evaluation.runs:
                for example, answer in zip(evaluation.examples, run.answers, strict=True):
                    parsed = evaluation.task.parse(answer)
                    line = {
                        "task": evaluation.task.name,
                        "condition": run.condition,
                        "detail": run.detail,
                        "files": [str(file) for files in example.recordings for file in files],
                        "reference": example.text,
                        "answer": answer,
                        "result": parsed.result,
                        "format_ok": parsed.format_ok,
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _split_manifest(config: TrainConfig, split: Split) -> Manifest:
    path = {"train": config.data.train, "valid": config.data.valid, "test": config.data.test}[split]
    if path is None:
        raise ConfigError(f"{config.name}: data.{split} is not given")
    return load_manifest(path, config.task, config.data.task)


def _mask_file(config: TrainConfig, family: ModelFamily) -> MaskFile:
    mask_file = MaskFile.load(config.out)
    mask_file.check_model(family.identity, config.out)
    return mask_file


def _plans(config: TrainConfig, options: EvaluateOptions, mask_file: MaskFile | None) -> Iterator[_Plan]:
    wanted = options.conditions
    if "mask" in wanted and mask_file is not None:
        yield _Plan("mask", None, mask_file.head_mask, None)
    if "instruction" in wanted:
        for instruction in config.all_instructions:
            yield _Plan("instruction", instruction, None, instruction)
    if "random" in wanted and mask_file is not None:
        own = mask_file.head_mask
        for seed in range(options.num_random):
            drawn = HeadMask.random(own.num_active, np.random.default_rng(seed), own.heads.shape)
            yield _Plan("random", str(seed), drawn, None)
    if "none" in wanted:
        yield _Plan("none", None, None, None)


def _run(
    config: TrainConfig,
    options: EvaluateOptions,
    family: ModelFamily,
    audio: AudioEmbeddings,
    examples: tuple[Example, ...],
    plan: _Plan,
    progress: Progress,
) -> Run:
    name = plan.condition if plan.condition != "random" else f"random {plan.detail}"
    bar = progress.add_task(f"{config.task.name}: {name}", total=len(examples))
    answers = answers_of(
        family,
        audio,
        head_mask=plan.head_mask,
        instruction=plan.instruction,
        max_new_tokens=config.task.max_new_tokens,
        num_beams=options.num_beams,
        batch_size=options.batch_size,
        on_done=lambda done: progress.advance(bar, done),
    )
    references = [example.text for example in examples]
    metrics = score(config.task, references, answers, config.text_metric)
    identity = family.identity
    total = identity.num_layers * identity.num_heads
    num_active = total if plan.head_mask is None else plan.head_mask.num_active
    return Run(plan.condition, plan.detail, num_active, metrics, tuple(answers))
