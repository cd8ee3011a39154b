"""How much the wording of an instruction matters: one task under many wordings, against its head mask."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from lalm.family import ModelFamily
from lalm.task import TaskSpec
from training.bench import Bench, Plan, Run
from training.config import TrainConfig
from training.errors import ConfigError
from training.evaluate import EvaluateOptions, load_mask, split_manifest
from training.metrics.measured import NUM_RESAMPLES, Comparison, Indices, Measured, compare, interval
from training.scores import goodness, is_error, is_main
from training.train import load_configured_family, subset
from training.wordings import Wording

SUFFERS_POINTS = 5.0


@dataclass(frozen=True)
class Assessment:
    """A task under many wordings; `masked` is the run under the head mask, where there is one.

    gap: the best wording minus the worst, in the task's first metric besides IFR; chosen on every second
    example and compared on the others, so that the choice does not make a difference of its own.
    """

    task: TaskSpec
    split: str
    num_examples: int
    manifest_sha256: str
    wordings: tuple[Wording, ...]
    runs: tuple[Run, ...]
    masked: Run | None
    gap: Comparison | None

    @property
    def metric(self) -> str:
        """The metric that wordings are ordered by."""
        return main_metric(self.runs[0])

    @property
    def ranked(self) -> list[tuple[Wording, Run]]:
        """Wordings with their runs, the best first."""
        pairs = zip(self.wordings, self.runs, strict=True)
        return sorted(pairs, key=lambda pair: _order(pair[1], self.metric), reverse=True)

    @property
    def spread(self) -> float:
        """Worst minus best of the metric, without sign, in points."""
        values = [run.metrics[self.metric] for run in self.runs]
        return max(values) - min(values)

    @property
    def suffers(self) -> bool:
        """Whether wording matters: best and worst differ by `SUFFERS_POINTS` or more, and not by chance."""
        beyond_chance = self.gap is None or self.gap.p_value < 0.05
        return self.spread >= SUFFERS_POINTS and beyond_chance


def assess(
    config: TrainConfig,
    wordings: Sequence[Wording],
    options: EvaluateOptions,
    *,
    family: ModelFamily | None = None,
    num_resamples: int = NUM_RESAMPLES,
    console: Console | None = None,
) -> Assessment:
    """Answer the recipe's split under every wording, and under the recipe's head mask if its file exists.

    Raises:
        TrainingError: no wording, no such split, or its manifest cannot be used.
        HeadMaskError: the recipe's mask file cannot be used with its model.
    """
    if not wordings:
        raise ConfigError(f"{config.name}: there is no wording of task {config.task.name!r}")
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)
    manifest = split_manifest(config, options.split)
    family = family or load_configured_family(config)
    head_mask = load_mask(config, config.out, family).head_mask if config.out.is_file() else None
    examples = tuple(subset(manifest.examples, options.max_examples))
    with Progress(console=console or Console(stderr=True)) as progress:
        decoding = {"num_beams": options.num_beams, "batch_size": options.batch_size}
        bench = Bench(config, family, examples, progress, **decoding)
        runs = [bench.run(Plan("instruction", each.text, None, each.text)) for each in wordings]
        masked = bench.run(Plan("mask", None, head_mask)) if head_mask is not None else None
    return Assessment(
        task=config.task,
        split=options.split,
        num_examples=len(examples),
        manifest_sha256=manifest.sha256,
        wordings=tuple(wordings),
        runs=tuple(runs),
        masked=masked,
        gap=widest_gap(runs, len(examples), num_resamples),
    )


def assessment_record(assessment: Assessment, num_resamples: int = NUM_RESAMPLES) -> dict[str, Any]:
    """An assessment as JSON values, the best wording first, with 95 % bootstrap intervals."""
    metric = assessment.metric
    ranked = assessment.ranked
    values = [run.metrics[metric] for run in assessment.runs]
    return {
        "task": assessment.task.name,
        "split": assessment.split,
        "num_examples": assessment.num_examples,
        "manifest_sha256": assessment.manifest_sha256,
        "metric": metric,
        "best": ranked[0][1].metrics[metric],
        "worst": ranked[-1][1].metrics[metric],
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.pstdev(values),
        "spread": assessment.spread,
        "p_value": None if assessment.gap is None else assessment.gap.p_value,
        "suffers": assessment.suffers,
        "mask": None if assessment.masked is None else _record(assessment.masked, num_resamples),
        "wordings": [
            {"text": wording.text, "origin": wording.origin, **_record(run, num_resamples)}
            for wording, run in ranked
        ],
    }


def main_metric(run: Run) -> str:
    """The first main metric of a run that says more than that the format is right."""
    names = [name for name in run.metrics if is_main(name)]
    return next((name for name in names if name != "ifr"), names[0])


def _record(run: Run, num_resamples: int) -> dict[str, Any]:
    found = {one.name: interval(one, len(run.answers), num_resamples) for one in run.scores.measured}
    return {
        "metrics": run.metrics,
        "intervals": {name: list(limits) for name, limits in found.items() if limits is not None},
    }


def _order(run: Run, metric: str) -> tuple[float, float]:
    value = run.metrics[metric]
    main = {name: number for name, number in run.metrics.items() if is_main(name)}
    return (-value if is_error(metric) else value, goodness(main))


def widest_gap(runs: Sequence[Run], num_examples: int, num_resamples: int) -> Comparison | None:
    """Best minus worst run; None for a metric without resamples or fewer than two examples."""
    metric = main_metric(runs[0])
    measured = [_metric(run, metric) for run in runs]
    chosen_on, compared_on = np.arange(0, num_examples, 2), np.arange(1, num_examples, 2)
    if compared_on.size == 0 or any(one.resample is None for one in measured):
        return None
    parts = [_part(one, chosen_on) for one in measured]
    order = sorted(range(len(runs)), key=lambda run: parts[run].value, reverse=is_error(metric))
    best, worst = (_part(measured[run], compared_on) for run in (order[-1], order[0]))
    return compare(best, worst, compared_on.size, num_resamples)


def _part(measured: Measured, indices: Indices) -> Measured:
    """A metric of some of its examples only."""
    resample = measured.resample
    if resample is None:
        raise ValueError(f"{measured.name} cannot be resampled")
    return Measured(measured.name, resample(indices), lambda drawn: resample(indices[drawn]))


def _metric(run: Run, name: str) -> Measured:
    return next(one for one in run.scores.measured if one.name == name)
