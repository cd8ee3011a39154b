"""The commands `assess` and `analyse`; what is slow to import is imported when they run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from training.config import TrainConfig

_Out = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for tables and figures.")]


def assess(
    sources: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Recipes (TOML), or one manifest.")
    ],
    wordings: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Your wordings (TOML).  [default: the package's]"),
    ] = None,
    edits: Annotated[bool, typer.Option(help="Try simple edits of the first wording, too.")] = True,
    out: _Out = Path("assessment"),
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Which data.")] = "test",
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings decoded together.")] = 16,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Use so many of the split.")] = None,
    num_resamples: Annotated[int, typer.Option(min=10, help="Resamples of a bootstrap.")] = 1000,
    model: Annotated[str | None, typer.Option(help="Of a manifest: folder or hub id of the model.")] = None,
    instruction: Annotated[
        list[str] | None, typer.Option(help="Of a manifest: your instruction; may be repeated.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Of a manifest: the labels, with commas; otherwise answers are text.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a manifest: cpu, cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a task.")] = False,
) -> None:
    """Measure how much the wording of an instruction matters.

    Answers a task under many wordings: those of the recipe, of a list, and simple edits (case, punctuation,
    politeness, order). Writes assessment.json, assessment.md and assessment.png; prints a row a task.

    \b
    ahamask assess training/recipes/*.toml --max-examples 100
    ahamask assess calls.jsonl --model Qwen/Qwen2-Audio-7B --labels yes,no --instruction "Is it a complaint?"
    """
    configs = list(_configs(sources, model, instruction or [], labels, device))
    from training.analysis import assessment_report as report
    from training.evaluate import EvaluateOptions
    from training.families_of import shared_families
    from training.sensitivity import assess as assess_task
    from training.sensitivity import assessment_record
    from training.wordings import WORDINGS, load_wordings, wordings_of

    listed = load_wordings(wordings or WORDINGS)
    options = EvaluateOptions(
        split=split, num_beams=num_beams, batch_size=batch_size, max_examples=max_examples
    )
    records: list[dict[str, Any]] = []
    for config, family in shared_families(configs):
        tried = wordings_of(config.all_instructions, listed.get(config.task.name, ()), edits=edits)
        found = assess_task(config, tried, options, family=family, num_resamples=num_resamples)
        records.append(assessment_record(found, num_resamples))
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(records, indent=1, ensure_ascii=False)
    (out / "assessment.json").write_text(text + "\n", encoding="utf-8")
    (out / "assessment.md").write_text(report.page(records), encoding="utf-8")
    report.draw(records, out / "assessment.png")
    if as_json:
        for record in records:
            typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        typer.echo(report.overview(records), nl=False)


def analyse(
    sources: Annotated[
        list[Path], typer.Argument(exists=True, help="Mask files, folders of them, or run folders.")
    ],
    out: _Out = Path("analysis"),
    curve: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A recipe: score against the number of heads."),
    ] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Of a curve: use so many.")] = 100,
    num_points: Annotated[int, typer.Option(min=4, help="Of a curve: numbers of heads tried.")] = 12,
) -> None:
    """Compare head masks of one model.

    Overlap of each pair as a clustered heat map, active heads by layer, seeds of one task, and with --curve
    the score against the number of heads, in the order of their logits (from a run folder).

    \b
    ahamask analyse masks/tiny-lalm
    ahamask analyse runs/gr --curve training/recipes/gr.toml
    """
    from training.analysis import report

    summary = report.analyse(sources, out)
    if curve is not None:
        summary += report.analyse_curve(sources, curve, out, max_examples, num_points)
    (out / "analysis.md").write_text(summary, encoding="utf-8")
    typer.echo(summary, nl=False)


def _configs(
    sources: list[Path], model: str | None, instructions: list[str], labels: str | None, device: str
) -> Iterator[TrainConfig]:
    """The recipes; a manifest is made one, with the options that only it needs."""
    from training.config import load_config, parse_config

    for source in sources:
        if source.suffix == ".toml":
            yield load_config(source)
            continue
        if model is None or not instructions:
            raise typer.BadParameter(f"{source}: a manifest needs --model and --instruction")
        name = _task_name(source)
        names = [label.strip() for label in labels.split(",")] if labels else None
        output = {"kind": "label", "labels": names} if names else {"kind": "text"}
        values = {
            "preset": "paper",
            "checkpoint": model,
            "out": Path("masks") / Path(model).name / f"{name}.json",
            "instructions": instructions,
            "task": {"name": name, "title": name, "output": output, "max_new_tokens": 16 if names else 200},
            "data": dict.fromkeys(("train", "valid", "test"), source),
            "run": {"device": device},
        }
        yield parse_config(values, source.name)


def _task_name(manifest: Path) -> str:
    """The task of the first entry, wherever it stands."""
    found = re.search(r'"task"\s*:\s*"([^"]+)"', manifest.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise typer.BadParameter(f"{manifest}: neither a recipe (*.toml) nor a manifest with a task")
    return found.group(1)
