"""Score against the number of heads activated in the order of their logits, the highest first.

Source: AHAMask (arXiv 2509.01787), the analysis of how an ability appears as heads are activated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lalm.head_mask import HeadMask
from training.analysis.figures import new_axes, save
from training.bench import Bench, Plan
from training.mask_logits import binarise
from training.scores import metric_title, upward
from training.sensitivity import main_metric
from training.table import markdown

Record = dict[str, Any]


def head_counts(num_active: int, total: int, num_points: int = 12) -> list[int]:
    """How many heads are activated: evenly up to the mask's own size, then some beyond, and all."""
    inside = np.linspace(0, num_active, num_points - 2)[1:]
    beyond = [num_active + (total - num_active) // 2, total]
    return sorted({round(float(count)) for count in (*inside, *beyond)} - {0})


def top_heads(logits: NDArray[np.float32], count: int) -> HeadMask:
    """The `count` heads with the highest logits; of equal ones the first."""
    order = np.argsort(-logits.ravel(), kind="stable")
    heads = np.zeros(logits.size, dtype=np.bool_)
    heads[order[:count]] = True
    return HeadMask(heads.reshape(logits.shape))


def curve_record(task: str, bench: Bench, logits: NDArray[np.float32], counts: Sequence[int]) -> Record:
    """The score with so many heads activated in the order of the logits, and in a random order."""
    random_order = np.random.default_rng(0).permutation(logits.size).reshape(logits.shape)
    orders = {"logits": logits, "random": random_order.astype(np.float32)}
    metric = ""
    curves: dict[str, list[dict[str, float]]] = {}
    for name, order in orders.items():
        runs = [bench.run(Plan("other", f"{name} {count}", top_heads(order, count))) for count in counts]
        metric = main_metric(runs[0])
        curves[name] = [run.metrics for run in runs]
    num_active = binarise(torch.from_numpy(logits)).num_active
    return {"task": task, "metric": metric, "num_heads": logits.size, "num_active": num_active,
            "counts": list(counts), "curves": curves}  # fmt: skip


def curve_table(record: Record) -> str:
    """A row a number of heads."""
    metric = record["metric"]
    rows = [
        (f"{count}{' (the mask)' if count == record['num_active'] else ''}", *values)
        for count, *values in zip(
            record["counts"],
            *([f"{point[metric]:.1f}" for point in curve] for curve in record["curves"].values()),
            strict=True,
        )
    ]
    title = metric_title(metric)
    columns = ("Active heads", f"{title}, by logits", f"{title}, in random order")
    return markdown(columns, rows, 0)


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """A line a task, and a faint one for the random order; error rates are turned round."""
    figure, axes = new_axes(7.0, 4.2)
    for number, record in enumerate(records):
        metric, colour = record["metric"], f"C{number}"
        for name, curve in record["curves"].items():
            values = [upward(metric, point[metric]) for point in curve]
            by_logits = name == "logits"
            label = f"{record['task']} ({metric_title(metric)[:-2]})" if by_logits else None
            style = {"linestyle": "-", "marker": "o", "markersize": 3.0} if by_logits else {"linestyle": ":"}
            axes.plot(record["counts"], values, color=colour, label=label, **style)
        axes.axvline(record["num_active"], color=colour, linewidth=0.8, alpha=0.5)
    axes.set_xlabel("heads activated (dotted: in random order; vertical line: the mask)")
    axes.set_ylabel("score; error rates as 100 minus the rate")
    axes.set_ylim(-2, 102)
    axes.grid(color="0.9")
    axes.legend(frameon=False)
    save(figure, path)
