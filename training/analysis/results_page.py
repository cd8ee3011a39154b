"""The page of results, from their records; each finding with a verdict that the numbers decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from training.analysis.assessment_report import overview, wordings_table
from training.analysis.curve import curve_table
from training.analysis.overlap import pairs_table, seeds_table
from training.analysis.records import Record
from training.scores import goodness, is_main, metric_title, upward
from training.table import markdown

FAR_POINTS = 10.0  # a random mask "fails" where it is so far behind the task's own
NEAR_POINTS = 2.0  # two scores are "the same" up to this
FOREIGN_PERCENT = 10.0  # two head masks are "different" where so many heads differ


@dataclass(frozen=True)
class Results:
    """The records of every experiment."""

    model: str
    fingerprint: str
    max_examples: int
    label_tasks: tuple[str, ...]
    wordings: list[Record]
    random_masks: list[Record]
    overlap: Record | None
    seeds: list[Record]
    sparsity: list[Record]
    curves: list[Record]


def page(results: Results, folder: str) -> str:
    """The whole page; `folder` is where figures lie, as seen from the page."""
    made = (
        "The paper's findings, measured again on a small model. Made by `make results`, which computes only "
        "what has changed; every number is in a record beside the figures, with a digest of what it was made "
        "from.\n\n"
        f"Model `{results.model}`, weights `{results.fingerprint[:23]}…`; up to {results.max_examples} test "
        "examples a task, greedy, float32.\n"
    )
    parts = [
        "# Results on the embedded model\n",
        made,
        *_wordings(results, folder),
        *_random(results),
        *_overlap(results, folder),
        *_seeds(results),
        *_curves(results, folder),
        *_sparsity(results),
    ]
    return "\n".join(parts)


def _wordings(results: Results, folder: str) -> Iterator[str]:
    suffer = [one["task"] for one in results.wordings if one["suffers"]]
    better = [one["task"] for one in results.wordings if _reaches(one, one["best"])]
    yield "## The wording of an instruction\n"
    yield _verdict(
        bool(suffer),
        f"on {len(suffer)} of {len(results.wordings)} tasks wordings differ by 5 points or more, beyond "
        "chance" + (f" ({', '.join(suffer)})" if suffer else ""),
    )
    yield _verdict(
        len(better) == len(results.wordings),
        f"on {len(better)} of {len(results.wordings)} tasks the head mask comes within {NEAR_POINTS:g} "
        "points of the best wording, or above it",
    )
    yield overview(results.wordings)
    yield f"![Scores under many wordings]({folder}/wordings.png)\n"
    for record in results.wordings:
        yield _folded(f"{record['task']}: every wording", wordings_table(record))


def _random(results: Results) -> Iterator[str]:
    rows, failing = [], []
    for record in results.random_masks:
        runs = {name: [one for one in record["runs"] if one["condition"] == name] for name in _CONDITIONS}
        own = runs["mask"][0]
        behind = [_good(own) - _good(one) for one in runs["random"]]
        if behind and min(behind) >= FAR_POINTS:
            failing.append(record["task"])
        for metric in [name for name in own["metrics"] if is_main(name)]:
            values = [one["metrics"][metric] for one in runs["random"]]
            spread = (
                f"{sum(values) / len(values):.1f} [{min(values):.1f}–{max(values):.1f}]" if values else "–"
            )
            cells = (f"{own['metrics'][metric]:.1f}", spread, f"{runs['none'][0]['metrics'][metric]:.1f}")
            rows.append((record["task"], metric_title(metric), str(own["active_heads"]), *cells))
    rest = sorted({record["task"] for record in results.random_masks} - set(failing))
    yield "## Random masks of the same size\n"
    yield _verdict(
        not rest,
        f"every random mask stays {FAR_POINTS:g} points or more behind on {len(failing)} of "
        f"{len(results.random_masks)} tasks" + (f"; not on {', '.join(rest)}" if rest else ""),
    )
    yield markdown(("Task", "Metric", "Heads", "Head mask", "Random masks", "Neither"), rows, 2)


def _overlap(results: Results, folder: str) -> Iterator[str]:
    record = results.overlap
    if record is None:
        return
    sizes = dict(zip(record["names"], record["active_heads"], strict=True))
    labels = [sizes[name] for name in results.label_tasks if name in sizes]
    others = [size for name, size in sizes.items() if name not in results.label_tasks]
    pairs = list(combinations(range(len(record["names"])), 2))
    nearest = max(pairs, key=lambda pair: record["jaccard"][pair[0]][pair[1]])
    names = " and ".join(record["names"][at] for at in nearest)
    yield "## Overlap of tasks\n"
    if labels and others:
        fewer = max(labels) < min(others)
        yield _verdict(
            fewer,
            f"classification needs fewer heads than generation: {_range(labels)} against {_range(others)} of "
            f"{record['num_heads']}",
        )
    yield f"The masks of {names} are nearest. (On SALMONN: OSR and S2TT, then OSR and ASR.)\n"
    yield pairs_table(record)
    yield f"![Overlap of the tasks' head masks]({folder}/overlap.png)\n"
    yield f"![Active heads by layer]({folder}/layers.png)\n"


def _seeds(results: Results) -> Iterator[str]:
    for record in results.seeds:
        metric = _metric(next(iter(record["scores"].values())))
        shares = [100 * pair["share_differing"] for pair in record["pairs"]]
        own = [value[metric] for name, value in record["scores"].items() if name != "all in common"]
        common = record["scores"].get("all in common")
        yield f"## Seeds of {record['task']}\n"
        differ = min(shares) >= FOREIGN_PERCENT
        yield _verdict(
            differ and max(own) - min(own) <= NEAR_POINTS,
            f"masks from other seeds differ in {min(shares):.1f} to {max(shares):.1f} % of the heads "
            f"(paper: 32.1 %) and score {min(own):.1f} to {max(own):.1f}",
        )
        mean = sum(own) / len(own)
        works = common is not None and upward(metric, common[metric]) >= upward(metric, mean) - NEAR_POINTS
        said = "is empty" if common is None else f"({record['num_in_all']} heads) scores {common[metric]:.1f}"
        yield _verdict(differ and works, f"their intersection {said}")
        yield seeds_table(record)
        rows = [(name, f"{value[metric]:.1f}") for name, value in record["scores"].items()]
        yield markdown(("Head mask", metric_title(metric)), rows, 1)


def _curves(results: Results, folder: str) -> Iterator[str]:
    if not results.curves:
        return
    yield "## Heads activated in the order of their logits\n"
    for record in results.curves:
        metric, counts = record["metric"], record["counts"]
        values = [upward(metric, point[metric]) for point in record["curves"]["logits"]]
        target = 0.9 * max(values[: 1 + counts.index(record["num_active"])])
        first = next(count for count, value in zip(counts, values, strict=True) if value >= target)
        between = sum(0.1 * target < value < target for value in values)
        yield _verdict(
            between >= 2,
            f"{record['task']}: the score rises gradually ({between} of {len(counts)} points lie between a "
            f"tenth and nine tenths of it); nine tenths need {first} of {record['num_active']} heads",
        )
    yield f"![Score by number of heads]({folder}/curves.png)\n"
    for record in results.curves:
        yield _folded(f"{record['task']}: numbers", curve_table(record))


def _sparsity(results: Results) -> Iterator[str]:
    for record in results.sparsity:
        metric = _metric(record["points"][0]["metrics"])
        sizes = [point["num_active"] for point in record["points"]]
        yield f"## Sparsity of {record['task']}\n"
        yield _verdict(
            sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0],
            f"a larger lambda leaves fewer heads: {', '.join(map(str, sizes))} of {record['num_heads']}",
        )
        rows = [
            (f"{point['lambda']:g}", str(point["num_active"]), f"{point['metrics'][metric]:.1f}")
            for point in record["points"]
        ]
        yield markdown(("Lambda", "Active heads", metric_title(metric)), rows, 0)


_CONDITIONS = ("mask", "random", "none")


def _verdict(holds: bool, text: str) -> str:
    return f"- **{'Reproduces' if holds else 'Does not reproduce'}**: {text}.\n"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _reaches(record: Record, best: float) -> bool:
    metric, masked = record["metric"], record["mask"]
    return (
        masked is not None and upward(metric, masked["metrics"][metric]) >= upward(metric, best) - NEAR_POINTS
    )


def _good(run: Record) -> float:
    return goodness({name: value for name, value in run["metrics"].items() if is_main(name)})


def _metric(metrics: dict[str, float]) -> str:
    names = [name for name in metrics if is_main(name)]
    return next((name for name in names if name != "ifr"), names[0])


def _range(values: Sequence[int]) -> str:
    return f"{min(values)} to {max(values)}" if len(values) > 1 else str(values[0])
