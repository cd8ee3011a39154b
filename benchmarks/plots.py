"""results.json -> PNG figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_INCHES = (7.0, 4.2)


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a figure for each workload that has one; returns the files."""
    workloads, files = results["workloads"], []
    if "concurrent" in workloads:
        series = _series(workloads["concurrent"]["cells"], results["peers"])
        axes = ("clients", "requests/s")
        files.append(_lines(series, "requests_per_s", axes, folder / "throughput.png"))
        files.append(_lines(series, "p50_ms", ("clients", "latency p50, ms"), folder / "latency-p50.png"))
        files.append(_lines(series, "p99_ms", ("clients", "latency p99, ms"), folder / "latency-p99.png"))
    if "tasks" in workloads:
        series = _series(workloads["tasks"]["cells"], results["peers"])
        axes = ("tasks on one recording", "time to the last answer p50, ms")
        files.append(_lines(series, "p50_ms", axes, folder / "tasks.png"))
    return files


def _series(cells: Any, peers: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """{title: {x: figures of all rounds}}"""
    series: dict[str, dict[int, Any]] = {}
    for cell in cells:
        series.setdefault(peers[cell["peer"]]["title"], {})[int(cell["group"])] = cell["all"]
    return series


def _lines(series: Mapping[str, Mapping[int, Any]], key: str, axes: tuple[str, str], path: Path) -> Path:
    figure, plot = pyplot.subplots(figsize=_INCHES, layout="constrained")
    for title, points in series.items():
        xs = sorted(x for x in points if points[x][key] is not None)
        plot.plot(xs, [points[x][key] for x in xs], marker="o", label=title)
    plot.set_xscale("log", base=2)
    plot.set_yscale("log")
    ticks = sorted({x for points in series.values() for x in points})
    plot.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    plot.set_xlabel(axes[0])
    plot.set_ylabel(axes[1])
    plot.grid(visible=True, which="both", alpha=0.3)
    plot.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
