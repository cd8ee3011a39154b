"""The commands `train` and `evaluate`; what is slow to import is imported when they run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.evaluate import EvaluateOptions, TaskEvaluation

_Condition = Literal["mask", "instruction", "random", "none"]
_Form = Literal["terminal", "table", "paper", "json"]

_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; may be repeated."),
]

# evaluate: what is measured
_Split = Annotated[Literal["train", "valid", "test"], typer.Option(help="Which data.")]
_Conditions = Annotated[
    list[str] | None,
    typer.Option(help=", ".join(get_args(_Condition)) + "; may be repeated.  [default: all]"),
]
_NumRandom = Annotated[int, typer.Option(min=1, help="Random head masks a task.")]
_NumBeams = Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Recordings decoded together.")]
_MaxExamples = Annotated[int | None, typer.Option(min=1, help="Use so many of the split.")]
_Against = Annotated[
    list[Path] | None,
    typer.Option(exists=True, dir_okay=False, help="Another mask file of the task; may be repeated."),
]

# evaluate: where the numbers go
_Write = Annotated[bool, typer.Option("--write", help="Put the numbers into the mask files.")]
_Answers = Annotated[Path | None, typer.Option(help="Write every answer here, JSONL.")]
_Table = Annotated[bool, typer.Option("--table", help="Print a Markdown table.")]
_PaperTable = Annotated[bool, typer.Option("--paper-table", help="The same as in the paper.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a task.")]
_Compare = Annotated[
    bool, typer.Option("--compare", help="Print the mask minus instructions, by paired bootstrap.")
]
_Confusion = Annotated[bool, typer.Option("--confusion", help="Print confusion matrices.")]
_NumResamples = Annotated[int, typer.Option(min=10, help="Resamples of a bootstrap.")]


def train(
    recipe: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="A recipe (TOML).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    resume_from: Annotated[
        Path | None, typer.Option(exists=True, help="Start with this mask file, or this run's logits.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(exists=True, help="Train on this manifest or feedback folder.")
    ] = None,
    overrides: _Set = None,
) -> None:
    """Train the head mask of a recipe.

    Every weight of the model stays frozen. Prints the file that the head mask went into. Ctrl-C leaves a
    checkpoint that --resume takes up. Paths in a recipe are relative to the current folder.

    --resume-from starts a training with a head mask that exists; its run goes to runs/<task>-continued. With
    --manifest no recipe is needed: the mask file has the task, a part of the manifest is held out.

    \b
    ahamask train training/recipes/asr.toml
    ahamask train training/recipes/asr.toml --set optim.steps=50 --set run.device=cuda
    ahamask train --resume-from masks/tiny-lalm/asr.json --manifest feedback/
    accelerate launch --multi_gpu --num_processes 4 -m ahamask train asr-7b.toml
    """
    values = _overrides(overrides)
    from training.continuing import recipe_to_continue
    from training.processes import launched
    from training.train import train as train_head_mask

    config = recipe_to_continue(recipe, resume_from, manifest, values)
    path = train_head_mask(config, resume=resume)
    processes = launched(config.run.device)
    if processes.is_main:
        typer.echo(str(path))
    processes.leave()


def evaluate(
    recipes: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Recipes (TOML).")],
    split: _Split = "test",
    condition: _Conditions = None,
    num_random: _NumRandom = 5,
    num_beams: _NumBeams = 1,
    batch_size: _BatchSize = 16,
    max_examples: _MaxExamples = None,
    overrides: _Set = None,
    write: _Write = False,
    against: _Against = None,
    answers: _Answers = None,
    table: _Table = False,
    paper_table: _PaperTable = False,
    as_json: _Json = False,
    compare: _Compare = False,
    confusion: _Confusion = False,
    num_resamples: _NumResamples = 1000,
) -> None:
    """Measure the head masks of recipes.

    Compares them with the instruction, with random head masks of the same size, and with neither. Answers
    come from plain Hugging Face generate, not from the service's engine. --json has 95 % intervals.

    \b
    ahamask evaluate training/recipes/gr.toml --condition mask --max-examples 100
    ahamask evaluate training/recipes/*.toml --paper-table --num-beams 4
    ahamask evaluate training/recipes/gr.toml --compare --against runs/gr-seed1/gr.json
    """
    form = _form(table=table, paper=paper_table, as_json=as_json)
    values = _overrides(overrides)
    from training.answer_lines import write_answers
    from training.config import load_config
    from training.evaluate import EvaluateOptions

    options = EvaluateOptions(
        split=split,
        conditions=_conditions(condition or get_args(_Condition)),
        num_random=num_random,
        num_beams=num_beams,
        batch_size=batch_size,
        max_examples=max_examples,
        against=tuple(against or ()),
    )
    configs = [load_config(recipe, values) for recipe in recipes]
    evaluations = list(_evaluations(configs, options, write=write))
    if answers is not None:
        write_answers(evaluations, answers)
    _print_table(evaluations, form, num_resamples)
    if form != "json":
        _print_details(evaluations, num_resamples, compare=compare, confusion=confusion)


def _evaluations(
    configs: Iterable[TrainConfig], options: EvaluateOptions, *, write: bool
) -> Iterator[TaskEvaluation]:
    """One evaluation a recipe; recipes of the same model in a row share it."""
    from training.evaluate import evaluate as evaluate_recipe
    from training.families_of import shared_families

    for config, family in shared_families(configs):
        yield evaluate_recipe(config, options, family=family, write=write)


def _form(*, table: bool, paper: bool, as_json: bool) -> _Form:
    forms: tuple[tuple[_Form, bool], ...] = (("table", table), ("paper", paper), ("json", as_json))
    asked = [form for form, is_asked in forms if is_asked]
    if len(asked) > 1:
        raise typer.BadParameter("--table, --paper-table and --json exclude each other")
    return asked[0] if asked else "terminal"


def _print_table(evaluations: list[TaskEvaluation], form: _Form, num_resamples: int) -> None:
    from rich.console import Console

    from training import table

    match form:
        case "terminal":
            Console().print(table.rich_table(evaluations))
        case "table":
            typer.echo(table.markdown_table(evaluations), nl=False)
        case "paper":
            typer.echo(table.paper_table(evaluations), nl=False)
        case "json":
            for row in table.json_table(evaluations, num_resamples):
                typer.echo(json.dumps(row, ensure_ascii=False))


def _print_details(
    evaluations: list[TaskEvaluation], num_resamples: int, *, compare: bool, confusion: bool
) -> None:
    from training.table import comparison_rows, confusion_tables

    for line in comparison_rows(evaluations, num_resamples) if compare else ():
        typer.echo(line)
    if confusion:
        typer.echo(confusion_tables(evaluations), nl=False)


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    """`["optim.steps=50"]` to `{"optim.steps": 50}`; a value that is not TOML is a string."""
    values = {}
    for setting in settings or ():
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise typer.BadParameter(f"--set {setting}: not of the form KEY=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        values[key.strip()] = value
    return values


def _conditions(names: Iterable[str]) -> tuple[_Condition, ...]:
    known: dict[str, _Condition] = {name: name for name in get_args(_Condition)}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--condition {name}: one of {', '.join(known)}")
    return tuple(known[name] for name in names)
