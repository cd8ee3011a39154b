"""Evaluations as a table: a row a task and metric, a column a condition; for people, READMEs and scripts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from training.bench import Condition, Run
from training.evaluate import CONDITIONS, TaskEvaluation, comparisons
from training.metrics.measured import NUM_RESAMPLES, interval
from training.metrics.translations import signatures
from training.scores import is_main, metric_title

_HEADERS: dict[Condition, str] = {
    "mask": "Head mask",
    "instruction": "Instruction",
    "random": "Random masks",
    "none": "Neither",
    "other": "Other masks",
}
_NONE = "–"


def table_columns(evaluations: Collection[TaskEvaluation]) -> tuple[str, ...]:
    """Titles; other masks have a column only where one was measured."""
    return ("Task", "Metric", "Active heads", *(_HEADERS[condition] for condition in _shown(evaluations)))


def table_rows(evaluations: Collection[TaskEvaluation]) -> list[tuple[str, ...]]:
    """Cells in the order of the columns; a condition that was not measured is "–"."""
    shown = _shown(evaluations)
    rows = []
    for evaluation in evaluations:
        for metric in evaluation.runs[0].metrics if evaluation.runs else ():
            cells = (_cell(evaluation.of(condition), metric) for condition in shown)
            rows.append((evaluation.task.name, metric_title(metric), _heads(evaluation), *cells))
    return rows


def rich_table(evaluations: Collection[TaskEvaluation]) -> Table:
    """For a terminal."""
    table = Table(*table_columns(evaluations), caption=" ".join(_footnotes(evaluations)) or None)
    for row in table_rows(evaluations):
        table.add_row(*row)
    return table


def markdown_table(evaluations: Collection[TaskEvaluation]) -> str:
    """For a README."""
    return markdown(table_columns(evaluations), table_rows(evaluations), 2) + _notes(evaluations)


def paper_table(evaluations: Collection[TaskEvaluation]) -> str:
    """The layout of the paper's tables, Markdown: a row a task, its main metrics in one cell.

    Source: AHAMask (arXiv 2509.01787), tables of the main results.
    """
    columns = ("Task", "Metric", "Active heads", "Mask, no instruction", "Instruction, no mask")
    rows = []
    for evaluation in evaluations:
        metrics = [name for name in evaluation.runs[0].metrics if is_main(name)] if evaluation.runs else []
        runs = {condition: evaluation.of(condition) for condition in ("mask", "instruction")}
        cells = [
            " / ".join(f"{found[0].metrics[name]:.2f}" for name in metrics) if found else _NONE
            for found in runs.values()
        ]
        titles = " / ".join(metric_title(name) for name in metrics)
        rows.append((evaluation.task.name, titles, _heads(evaluation), *cells))
    return markdown(columns, rows, 2) + _notes(evaluations)


def confusion_tables(evaluations: Collection[TaskEvaluation]) -> str:
    """The confusion matrices of head masks and instructions, Markdown; a row is what was right."""
    parts = []
    for evaluation in evaluations:
        for run in (*evaluation.of("mask"), *evaluation.of("instruction")):
            for name, confusion in run.scores.confusions.items():
                title = run.condition if run.detail is None else f"{run.condition} “{run.detail}”"
                rows = [
                    (label, *(str(count) for count in counts))
                    for label, counts in zip(confusion.labels, confusion.counts, strict=True)
                ]
                head = (f"{name} ↓ answered →", *confusion.labels, "none of them")
                parts.append(f"{evaluation.task.name}, {title}\n\n{markdown(head, rows, 1)}")
    return "\n".join(parts)


def json_table(
    evaluations: Collection[TaskEvaluation], num_resamples: int = NUM_RESAMPLES
) -> list[dict[str, Any]]:
    """For a script: one object a task, the runs without their answers, with bootstrap intervals."""
    return [
        {
            "task": evaluation.task.name,
            "split": evaluation.split,
            "num_examples": len(evaluation.examples),
            "num_beams": evaluation.num_beams,
            "manifest_sha256": evaluation.manifest_sha256,
            "signatures": _signatures(evaluation),
            "runs": [_run_record(run, num_resamples) for run in evaluation.runs],
            "mask_minus": [
                {
                    "condition": run.condition,
                    "detail": run.detail,
                    "metrics": {one.metric: one._asdict() for one in compared},
                }
                for run, compared in comparisons(evaluation, num_resamples)
            ],
        }
        for evaluation in evaluations
    ]


def comparison_rows(evaluations: Collection[TaskEvaluation], num_resamples: int) -> Iterator[str]:
    """The head mask against instructions and other masks, a sentence a metric."""
    for evaluation in evaluations:
        for run, compared in comparisons(evaluation, num_resamples):
            for one in compared:
                low, high = one.interval
                yield (
                    f"{evaluation.task.name}: mask minus {run.condition} {run.detail}: "
                    f"{metric_title(one.metric)} {one.difference:+.2f} [{low:+.2f}, {high:+.2f}], "
                    f"p = {one.p_value:.3f}"
                )


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], num_left: int) -> str:
    """A Markdown table; columns after the first `num_left` are aligned to the right."""
    rule = ["---"] * num_left + ["---:"] * (len(columns) - num_left)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (columns, rule, *rows))


def _shown(evaluations: Collection[TaskEvaluation]) -> tuple[Condition, ...]:
    others = any(evaluation.of("other") for evaluation in evaluations)
    return (*CONDITIONS, "other") if others else CONDITIONS


def _run_record(run: Run, num_resamples: int) -> dict[str, Any]:
    intervals = {one.name: interval(one, len(run.answers), num_resamples) for one in run.scores.measured}
    return {
        "condition": run.condition,
        "detail": run.detail,
        "active_heads": run.num_active,
        "metrics": run.metrics,
        "intervals": {name: list(found) for name, found in intervals.items() if found is not None},
        "confusion": {
            name: {"labels": list(one.labels), "counts": one.counts.tolist()}
            for name, one in run.scores.confusions.items()
        },
    }


def _heads(evaluation: TaskEvaluation) -> str:
    masked = evaluation.of("mask")
    return f"{masked[0].num_active} of {evaluation.num_heads}" if masked else _NONE


def _signatures(evaluation: TaskEvaluation) -> dict[str, str]:
    if not any(name.split("_")[0] == "bleu" for run in evaluation.runs for name in run.metrics):
        return {}
    return signatures(max((len(example.references) for example in evaluation.examples), default=1))


def _footnotes(evaluations: Collection[TaskEvaluation]) -> list[str]:
    signed = {text for evaluation in evaluations for text in _signatures(evaluation).items()}
    return [f"{metric_title(name)[:-2]} {signature}" for name, signature in sorted(signed)]


def _notes(evaluations: Collection[TaskEvaluation]) -> str:
    return "".join(f"\n{note}\n" for note in _footnotes(evaluations))


def _cell(runs: Sequence[Run], metric: str) -> str:
    if not runs:
        return _NONE
    values = [run.metrics[metric] for run in runs]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} [{min(values):.1f}–{max(values):.1f}]"
