"""results.json -> results.md: one table a workload, and the ratios of paired rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.stats import Ratio, paired_ratio

OURS = "ahamask"
_TITLES = {
    "single": "Single requests",
    "concurrent": "Concurrent clients, mixed tasks and lengths",
    "tasks": "One recording under several tasks",
    "batches": "Mixed batches against batches of one task",
}
_COLUMNS = (
    ("requests/s", "requests_per_s", "{:.1f}"),
    ("RTFx", "rtfx", "{:.1f}"),
    ("p50 ms", "p50_ms", "{:.0f}"),
    ("p95 ms", "p95_ms", "{:.0f}"),
    ("p99 ms", "p99_ms", "{:.0f}"),
    ("first token ms", "first_token_p50_ms", "{:.0f}"),
    ("errors", "errors", "{:d}"),
    ("429s", "refused", "{:d}"),
    ("same text", "same", "{:.0%}"),
    ("right", "right", "{:.0%}"),
)


def render(results: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [
        "# Results",
        "",
        "Made by `make bench`; [docs/benchmarks.md](../../docs/benchmarks.md) explains every column.",
        "",
    ]
    lines += _peers(results["peers"])
    for name, title in _TITLES.items():
        if name in results["workloads"]:
            lines += [f"## {title}", "", *_workload(name, results["workloads"][name], results["peers"])]
    return "\n".join(lines).rstrip() + "\n"


def ratio_of(cells: Sequence[Mapping[str, Any]], group: str, peer: str, key: str) -> Ratio | None:
    """Ours / theirs of one figure, paired by round; None where one of them did not run."""
    found = {cell["peer"]: cell for cell in cells if cell["group"] == group}
    if OURS not in found or peer not in found:
        return None
    sides = ([each[key] for each in found[name]["rounds"]] for name in (OURS, peer))
    return paired_ratio(*sides)


def mixed_cost(cells: Sequence[Mapping[str, Any]]) -> Ratio | None:
    """Time of mixed batches / time of batches of one task, paired by round."""
    rounds = {
        cell["group"]: [each["wall_s"] for each in cell["rounds"]] for cell in cells if cell["peer"] == OURS
    }
    return paired_ratio(rounds["mixed"], rounds["one task"]) if len(rounds) == 2 else None


def text_of(ratio: Ratio | None) -> str:
    """`2.10 x (1.95 to 2.20)`."""
    return "" if ratio is None else f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _peers(peers: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            peer["title"],
            _number(peer.get("cold_start_s"), "{:.1f}"),
            _number(peer.get("peak_rss_mb"), "{:.0f}"),
            peer.get("skipped") or "",
        ]
        for peer in peers.values()
    ]
    return [*table(("peer", "cold start s", "peak memory MB", ""), rows), ""]


def _workload(name: str, workload: Mapping[str, Any], peers: Mapping[str, Any]) -> list[str]:
    cells = workload["cells"]
    lines = [_machine(workload), ""]
    if name == "batches":
        lines += table(
            ("batches", *(title for title, _, _ in _COLUMNS)), (_row(cell["group"], cell) for cell in cells)
        )
        return [*lines, "", f"Mixed / one task, time: {text_of(mixed_cost(cells))}", ""]
    for group in dict.fromkeys(cell["group"] for cell in cells):
        if name != "single":
            lines += [f"### {group} {'clients' if name == 'concurrent' else 'tasks'}", ""]
        rows = [
            [
                *_row(peers[cell["peer"]]["title"], cell),
                "" if cell["peer"] == OURS else text_of(ratio_of(cells, group, cell["peer"], "p50_ms")),
                ""
                if cell["peer"] == OURS
                else text_of(ratio_of(cells, group, cell["peer"], "requests_per_s")),
            ]
            for cell in cells
            if cell["group"] == group
        ]
        header = ("peer", *(title for title, _, _ in _COLUMNS), "ours / its p50", "ours / its requests/s")
        lines += [*table(header, rows), ""]
    return lines + _remarks(name, cells)


def _remarks(name: str, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = {cell["group"]: cell for cell in cells if cell["peer"] == OURS}
    lines = []
    if name == "single" and ours and (outside := ours["single"]["all"]["outside_model_p50_ms"]) is not None:
        lines.append(f"HTTP, audio and client, outside the model: {outside:.1f} ms at p50.")
    if name == "tasks" and len(ours) > 1:
        first, last = min(ours, key=int), max(ours, key=int)
        sides = ([each["p50_ms"] for each in ours[group]["rounds"]] for group in (last, first))
        lines.append(f"{last} tasks / the one of the longest answer, p50: {text_of(paired_ratio(*sides))}")
    failures = [
        f"{cell['peer']}, {cell['group']}: {'; '.join(cell['failures'])}"
        for cell in cells
        if cell["failures"]
    ]
    return [*lines, *failures, ""] if lines or failures else []


def _machine(workload: Mapping[str, Any]) -> str:
    machine = workload["machine"]
    parts = (
        machine["processor"],
        f"{machine['num_cpus']} CPUs",
        f"{machine['memory_gb']} GB",
        f"torch {machine['torch']} ({machine['torch_threads']} threads)",
        f"transformers {machine['transformers']}",
        f"{machine['date']}, commit {machine['commit']}, load before {machine['load_before']}",
        f"{workload['rounds']} rounds, seed {workload['seed']}",
    )
    return f"{'; '.join(parts)}."


def _row(title: str, cell: Mapping[str, Any]) -> list[str]:
    return [title, *(_number(cell["all"][key], form) for _, key, form in _COLUMNS)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
