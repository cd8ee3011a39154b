"""Assessments as a Markdown page and as a figure, from their JSON records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.analysis.figures import new_axes, save
from training.scores import is_error, metric_title, upward
from training.table import markdown

Record = dict[str, Any]


def overview(records: Sequence[Record]) -> str:
    """A row a task, those that suffer most first: best, worst and spread over wordings, against the mask."""
    columns = ("Task", "Metric", "Wordings", "Best", "Worst", "Spread", "p", "Head mask", "Wording matters")
    rows = []
    for record in sorted(records, key=lambda one: -one["spread"]):
        metric = record["metric"]
        rows.append(
            (
                record["task"],
                metric_title(metric),
                str(len(record["wordings"])),
                f"{record['best']:.1f}",
                f"{record['worst']:.1f}",
                f"{record['spread']:.1f}",
                "–" if record["p_value"] is None else f"{record['p_value']:.3f}",
                "–" if record["mask"] is None else f"{record['mask']['metrics'][metric]:.1f}",
                "yes" if record["suffers"] else "no",
            )
        )
    return markdown(columns, rows, 2)


def wordings_table(record: Record) -> str:
    """Every wording of a task with its scores and 95 % intervals, the best first."""
    names = [name for name in record["wordings"][0]["metrics"] if name in (record["metric"], "ifr")]
    columns = ("Wording", "Origin", *(metric_title(name) for name in names))
    rows = [(each["text"], each["origin"], *_values(each, names)) for each in record["wordings"]]
    if record["mask"] is not None:
        rows.append(("*head mask, no instruction*", "", *_values(record["mask"], names)))
    return markdown(columns, rows, 2)


def page(records: Sequence[Record]) -> str:
    """The whole assessment."""
    tasks = (
        f"\n## {record['task']}\n\n{record['num_examples']} examples\n\n{wordings_table(record)}"
        for record in records
    )
    return "\n".join(["# Wordings\n", overview(records), *tasks])


def draw(records: Sequence[Record], path: Path) -> None:
    """A row a task: a dot a wording, a diamond for the head mask; error rates are turned round."""
    figure, axes = new_axes(7.0, 1.2 + 0.45 * len(records))
    for row, record in enumerate(records):
        metric = record["metric"]
        values = [upward(metric, each["metrics"][metric]) for each in record["wordings"]]
        axes.plot([min(values), max(values)], [row, row], color="0.8", linewidth=2, zorder=1)
        axes.scatter(values, [row] * len(values), s=22, color="tab:blue", alpha=0.6, zorder=2)
        if record["mask"] is not None:
            masked = upward(metric, record["mask"]["metrics"][metric])
            axes.scatter([masked], [row], s=55, marker="D", color="tab:red", zorder=3)
    labels = [f"{record['task']} ({_label(record['metric'])})" for record in records]
    axes.set_yticks(range(len(records)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("score, higher is better (diamond: the head mask)")
    axes.grid(axis="x", color="0.9")
    save(figure, path)


def _values(record: Record, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        limits = record["intervals"].get(name)
        spread = f" [{limits[0]:.1f}–{limits[1]:.1f}]" if limits else ""
        cells.append(f"{record['metrics'][name]:.1f}{spread}")
    return cells


def _label(metric: str) -> str:
    title = metric_title(metric)[:-2]
    return f"100 − {title}" if is_error(metric) else title
