"""Evaluations as a table: a row a task and metric, a column a condition; for people, READMEs and scripts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rich.table import Table

from training.evaluate import CONDITIONS, Condition, Run, TaskEvaluation
from training.scores import is_error

_HEADERS: dict[Condition, str] = {
    "mask": "Head mask",
    "instruction": "Instruction",
    "random": "Random masks",
    "none": "Neither",
}
_COLUMNS = ("Task", "Metric", "Active heads", *(_HEADERS[condition] for condition in CONDITIONS))


def table_rows(evaluations: Collection[TaskEvaluation]) -> list[tuple[str, ...]]:
    """Cells in the order of the columns; a condition that was not measured is "–"."""
    rows = []
    for evaluation in evaluations:
        masked = evaluation.of("mask")
        heads = f"{masked[0].num_active} of {evaluation.num_heads}" if masked else "–"
        for metric in evaluation.runs[0].metrics if evaluation.runs else ():
            cells = (_cell(evaluation.of(condition), metric) for condition in CONDITIONS)
            rows.append((evaluation.task.name, metric_title(metric), heads, *cells))
    return rows


def rich_table(evaluations: Collection[TaskEvaluation]) -> Table:
    """For a terminal."""
    table = Table(*_COLUMNS)
    for row in table_rows(evaluations):
        table.add_row(*row)
    return table


def markdown_table(evaluations: Collection[TaskEvaluation]) -> str:
    """For a README."""
    lines = [_COLUMNS, ("---", "---", *["---:"] * (len(_COLUMNS) - 2)), *table_rows(evaluations)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def json_table(evaluations: Collection[TaskEvaluation]) -> list[dict[str, Any]]:
    """For a script: one object a task, the runs without their answers."""
    return [
        {
            "task": evaluation.task.name,
            "split": evaluation.split,
            "num_examples": len(evaluation.examples),
            "num_beams": evaluation.num_beams,
            "manifest_sha256": evaluation.manifest_sha256,
            "runs": [
                {
                    "condition": run.condition,
                    "detail": run.detail,
                    "active_heads": run.num_active,
                    "metrics": run.metrics,
                }
                for run in evaluation.runs
            ],
        }
        for evaluation in evaluations
    ]


def metric_title(metric: str) -> str:
    """`wer_transcript` -> "WER transcript ↓"; the arrow says which way is better."""
    name, _, part = metric.partition("_")
    return " ".join(filter(None, (name.upper(), part, "↓" if is_error(metric) else "↑")))


def _cell(runs: Sequence[Run], metric: str) -> str:
    if not runs:
        return "–"
    values = [run.metrics[metric] for run in runs]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} [{min(values):.1f}–{max(values):.1f}]"
