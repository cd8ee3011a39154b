"""The commands `masks import`, `export`, `combine` and `random`: they write head mask files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import Json, Model, Revision, settings_of
from service.masks_cli import Where, find_mask, show

if TYPE_CHECKING:
    from lalm.head_mask import MaskFile, ModelIdentity
    from lalm.task import TaskSpec

_Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
_Out = Annotated[Path, typer.Option("--out", dir_okay=False, help="The file to write, <task>.json.")]
_Like = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Take the model from this mask file; needs no weights."),
]
_TaskName = Annotated[
    str | None, typer.Option("--task", help="One file: what it gives, such as gr or asr-gr-json.")
]
_Labels = Annotated[str | None, typer.Option(help="One file with one label: the label set, male,female.")]
_Tasks = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="TOML: a table a folder name, with keys of a task that replace."
    ),
]
_Fingerprint = Annotated[
    str | None, typer.Option(help="Refuse a model with another fingerprint than sha256:….")
]


def register_making(masks: typer.Typer) -> None:
    """Add the commands of this module to `ahamask masks`."""
    masks.command("import")(import_masks)
    masks.command("export")(export_mask)
    masks.command("combine")(combine_masks)
    masks.command("random")(random_mask)


def import_masks(
    source: Annotated[Path, typer.Argument(exists=True, help="A published .pth, or a folder of them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Folder to write to.  [default: masks/<model name>]"),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    like: _Like = None,
    fingerprint: _Fingerprint = None,
    task: _TaskName = None,
    labels: _Labels = None,
    tasks: _Tasks = None,
    keep_logits: Annotated[
        bool, typer.Option("--keep-logits", help="Keep the logits beside the heads, for an exact export.")
    ] = False,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Import published masks.

    They are PyTorch files of mask logits without model or task: the model is the one given, and must have
    their shape; the task is told from the name of the folder (gender_asr_librispeech: gender, then
    transcript), or given. The feed-forward column is dropped. Nothing is written if one of them is wrong.

    \b
    ahamask masks import published/ --model checkpoints/SALMONN-13B
    ahamask masks import my.pth --task ser --labels calm,upset --like masks/SALMONN-13B/asr.json
    """
    from lalm.published_mask import to_mask_file

    settings = settings_of(model=model, revision=revision)
    tasks_of = _tasks_of(source, task, labels, tasks)
    identity = _identity(settings.model, settings.revision, like, fingerprint)
    folder = out or settings.masks_dir_for(identity.name)
    written = {
        folder / f"{spec.name}.json": to_mask_file(path, spec, identity, keep_logits=keep_logits)
        for path, spec in tasks_of.items()
    }
    _check_free(list(written), force=force)
    for target, mask_file in written.items():
        _save(target, mask_file, as_json=as_json)


def export_mask(
    mask: Annotated[str, typer.Argument(help="A mask file, or the name of a task.")],
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="The .pth file to write.")],
    folder: Where = None,
    force: _Force = False,
) -> None:
    """Export a head mask in the published format.

    The logits it was imported with, if they were kept; else 4 for active heads and -4 for the others.

    \b
    ahamask masks export asr --out asr_mine/checkpoint.pth
    """
    from lalm.head_mask import MaskFile
    from lalm.published_mask import from_mask_file, write_mask_logits

    path = find_mask(mask, folder)
    logits = from_mask_file(MaskFile.load(path), path)
    _check_free([out], force=force)
    write_mask_logits(out, logits)
    show(str(out))


def combine_masks(
    masks: Annotated[list[str], typer.Argument(help="Mask files, or names of tasks; two or more.")],
    out: _Out,
    intersection: Annotated[bool, typer.Option("--and", help="Heads that all have.")] = False,
    union: Annotated[bool, typer.Option("--or", help="Heads that any has.")] = False,
    majority: Annotated[bool, typer.Option("--majority", help="Heads that more than half have.")] = False,
    folder: Where = None,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Combine head masks of one model.

    The task is the first file's, under the name of the file to write.

    \b
    ahamask masks combine --and runs/1/asr.json runs/2/asr.json runs/3/asr.json --out runs/and/asr.json
    """
    from lalm.head_mask import MaskFile
    from lalm.mask_algebra import Rule, combine_files

    chosen = {Rule.AND: intersection, Rule.OR: union, Rule.MAJORITY: majority}
    rules = [rule for rule, is_chosen in chosen.items() if is_chosen]
    if len(rules) != 1:
        raise typer.BadParameter("exactly one of --and, --or and --majority is needed")
    if len(masks) < 2:
        raise typer.BadParameter("two or more head masks are needed")
    paths = [find_mask(mask, folder) for mask in masks]
    combined = combine_files({path: MaskFile.load(path) for path in paths}, rules[0], out)
    _check_free([out], force=force)
    _save(out, combined, as_json=as_json)


def random_mask(
    out: _Out,
    like: Annotated[str, typer.Option(help="A mask file, or the name of a task.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal masks.")] = 0,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="As many heads in each layer, not only in all.")
    ] = False,
    folder: Where = None,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Draw a random head mask.

    With as many active heads as another one, for the same model and task: what a mask is compared with.

    \b
    ahamask masks random --like asr --seed 1 --out random/asr.json
    """
    from lalm.head_mask import MaskFile
    from lalm.mask_algebra import random_file

    path = find_mask(like, folder)
    drawn = random_file(path, MaskFile.load(path), out, seed=seed, per_layer=per_layer)
    _check_free([out], force=force)
    _save(out, drawn, as_json=as_json)


def _tasks_of(source: Path, task: str | None, labels: str | None, tasks: Path | None) -> dict[Path, TaskSpec]:
    """The published files of `source`, each with a task of its own."""
    sources = _published_files(source)
    if len(sources) > 1 and (task or labels):
        raise typer.BadParameter(f"--task and --labels are for one file, not for {len(sources)}; use --tasks")
    overrides = _overrides(tasks, sources) if tasks else {}
    specs = {path: _task_of(path, task, labels, overrides) for path in sources}
    names = [spec.name for spec in specs.values()]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"{source} has several masks for task {name!r}; name them with --tasks")
    return specs


def _published_files(source: Path) -> list[Path]:
    from lalm.errors import HeadMaskError
    from lalm.published_mask import SUFFIXES

    if source.is_file():
        return [source]
    paths = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES)
    if not paths:
        raise HeadMaskError(source, f"no published mask ({', '.join(SUFFIXES)}) in this folder")
    return paths


def _overrides(tasks: Path, sources: list[Path]) -> dict[str, dict[str, Any]]:
    """The tables of `tasks`, each of which has to be for one of `sources`."""
    from lalm.errors import HeadMaskError
    from lalm.published_task import name_of, read_overrides

    tables, names = read_overrides(tasks), {name_of(path) for path in sources}
    if unknown := sorted(tables.keys() - names):
        raise HeadMaskError(
            tasks, f"no mask to import for {', '.join(unknown)}; there are {', '.join(sorted(names))}"
        )
    return tables


def _task_of(
    path: Path, task: str | None, labels: str | None, overrides: dict[str, dict[str, Any]]
) -> TaskSpec:
    from lalm import published_task

    name = published_task.name_of(path)
    label_set = tuple(label.strip() for label in labels.split(",")) if labels else None
    keys = overrides.get(name, {})
    inferred = None
    if not published_task.is_complete(keys):
        inferred = published_task.infer_task(task or name, path, label_set)
    return published_task.override(inferred, keys, path)


def _identity(model: str, revision: str | None, like: Path | None, fingerprint: str | None) -> ModelIdentity:
    from lalm.errors import ModelError
    from lalm.head_mask import MaskFile

    if like is not None:
        identity = MaskFile.load(like).model
    else:
        from lalm.families import identify

        identity = identify(model, revision=revision)
    if fingerprint is not None and fingerprint != identity.fingerprint:
        raise ModelError(f"{identity.name} has fingerprint {identity.fingerprint}, not {fingerprint}")
    return identity


def _check_free(paths: list[Path], *, force: bool) -> None:
    taken = [str(path) for path in paths if path.exists()]
    if taken and not force:
        raise typer.BadParameter(f"{', '.join(taken)} exists; --force replaces it")


def _save(path: Path, mask_file: MaskFile, *, as_json: bool) -> None:
    from lalm import mask_report

    mask_file.save(path)
    show(mask_report.record(path, mask_file) if as_json else mask_report.line(path, mask_file))
