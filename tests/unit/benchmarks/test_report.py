from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks.plots import draw
from benchmarks.report import mixed_cost, ratio_of, render
from benchmarks.stats import Ratio, Record
from benchmarks.workloads import Cell

MACHINE = {
    "processor": "A CPU",
    "num_cpus": 2,
    "memory_gb": 8.0,
    "torch": "2",
    "torch_threads": 2,
    "transformers": "5",
    "date": "today",
    "commit": "abc",
    "load_before": 0.1,
}


def record(latency_s: float, error: str | None = None) -> Record:
    return Record("asr", 1.0, latency_s, latency_s / 2, latency_s / 2, 0, error, same=True, right=True)


def cell(group: str, peer: str, *latencies_s: float, error: str | None = None) -> Cell:
    return Cell(group, peer, [([record(latency_s, error)], latency_s) for latency_s in latencies_s])


def workload(*cells: Cell) -> dict[str, Any]:
    return {"machine": MACHINE, "rounds": 2, "seed": 0, "cells": [each.as_json() for each in cells]}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "peers": {
            "ahamask": {"title": "Ours", "cold_start_s": 3.21, "peak_rss_mb": 700},
            "generate": {"title": "Theirs", "cold_start_s": 2.0, "peak_rss_mb": 500},
            "litserve": {"title": "Absent", "skipped": "not installed"},
        },
        "workloads": {
            "single": workload(cell("single", "ahamask", 0.1, 0.3), cell("single", "generate", 0.4, 0.6)),
            "concurrent": workload(
                cell("1", "ahamask", 0.1),
                cell("1", "generate", 0.2),
                cell("8", "ahamask", 0.4),
                cell("8", "generate", 1.0, error="HTTP 500"),
            ),
            "tasks": workload(cell("1", "ahamask", 0.1, 0.1), cell("7", "ahamask", 0.2, 0.12)),
            "batches": workload(cell("one task", "ahamask", 1.0, 2.0), cell("mixed", "ahamask", 1.1, 2.0)),
        },
    }


def test_ratios_are_of_the_same_rounds(results: dict[str, Any]) -> None:
    cells = results["workloads"]["single"]["cells"]
    assert ratio_of(cells, "single", "generate", "p50_ms") == Ratio(pytest.approx(0.375), 0.25, 0.5, 2)
    assert ratio_of(cells, "single", "litserve", "p50_ms") is None
    assert mixed_cost(results["workloads"]["batches"]["cells"]) == Ratio(pytest.approx(1.05), 1.0, 1.1, 2)


def test_the_page_has_every_workload_machine_error_and_absence(results: dict[str, Any]) -> None:
    page = render(results)
    assert "| Absent |  |  | not installed |" in page
    assert "| Ours | 3.2 | 700 |  |" in page
    assert "0.38 x (0.25 to 0.50)" in page
    assert "### 8 clients" in page
    assert "generate, 8: HTTP 500" in page
    assert "7 tasks / the one of the longest answer, p50: 1.60 x (1.20 to 2.00)" in page
    assert "Mixed / one task, time: 1.05 x (1.00 to 1.10)" in page
    assert page.count("A CPU; 2 CPUs") == 4
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables if "ours / its" in line or "Theirs |" in line}) <= 2


def test_runs_of_other_workloads_merge(results: dict[str, Any]) -> None:
    later = {
        "peers": {"ahamask": {"title": "Ours", "cold_start_s": 9.0, "peak_rss_mb": 600}},
        "workloads": {"single": workload(cell("single", "ahamask", 0.2))},
    }
    merged = run.merge(results, later)
    assert set(merged["workloads"]) == set(results["workloads"])
    assert merged["workloads"]["single"] == later["workloads"]["single"]
    assert merged["peers"]["ahamask"] == {"title": "Ours", "cold_start_s": 9.0, "peak_rss_mb": 700}
    assert merged["peers"]["generate"] == results["peers"]["generate"]
    assert run.merge({"peers": {}, "workloads": {}}, results) == results
    json.dumps(merged)


def test_figures_are_written(results: dict[str, Any], tmp_path: Path) -> None:
    files = draw(results, tmp_path / "figures")
    assert [path.name for path in files] == [
        "throughput.png",
        "latency-p50.png",
        "latency-p99.png",
        "tasks.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    assert draw({"peers": {}, "workloads": {}}, tmp_path) == []


@pytest.mark.parametrize("option", ["--workloads=single,nothing", "--peers=vllm"])
def test_unknown_names_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([option])
    assert "known are" in capsys.readouterr().err
