"""The commands `masks list`, `show`, `verify` and `diff`: they look at head masks and change nothing.

`service/masks_making_cli.py` adds the commands that write files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import Json, Model, Revision, settings_of

PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}

masks = typer.Typer(no_args_is_help=True, help="List, check, compare and convert head masks.", **PLAIN)

_MASKS = Path(__file__).resolve().parent.parent / "masks"

_Folder = Annotated[
    Path | None, typer.Argument(exists=True, file_okay=False, help="Folder of mask files, subfolders too.")
]
Where = Annotated[
    Path | None,
    typer.Option("--masks", exists=True, file_okay=False, help="Where tasks are looked up."),
]


@masks.command("list")
def list_masks(folder: _Folder = None, as_json: Json = False) -> None:
    """List head masks.

    By default those of every model under masks/. Columns: model, task, active heads, packed size, file,
    title.
    """
    from lalm import mask_report
    from lalm.head_mask import MaskFile

    for path in _mask_paths(folder):
        mask_file = MaskFile.load(path)
        show(mask_report.record(path, mask_file) if as_json else mask_report.line(path, mask_file))


@masks.command("show")
def show_mask(
    mask: Annotated[str, typer.Argument(help="A mask file, or the name of a task.")],
    folder: Where = None,
    as_json: Json = False,
) -> None:
    """Show one head mask.

    Its packed size, the active heads of each layer, what was measured with it and how it was made.
    """
    from lalm import mask_report
    from lalm.head_mask import MaskFile

    path = find_mask(mask, folder)
    mask_file = MaskFile.load(path)
    show(mask_report.record(path, mask_file) if as_json else mask_report.page(path, mask_file))


@masks.command("verify")
def verify_masks(
    folder: _Folder = None, model: Model = None, revision: Revision = None, as_json: Json = False
) -> None:
    """Check head masks against a model.

    Every file must be well formed and made for the weights of this model. The folder is by default the one
    that is served with the model. Exit code 1 if a file is bad.
    """
    settings = settings_of(model=model, revision=revision)
    from lalm.errors import HeadMaskError
    from lalm.families import identify
    from lalm.head_mask import MaskFile

    identity = identify(settings.model, revision=settings.revision)
    num_bad = 0
    for path in _mask_paths(folder or settings.masks_dir_for(identity.name)):
        reason = None
        try:
            MaskFile.load(path).check_model(identity, path)
        except HeadMaskError as error:
            reason, num_bad = error.reason, num_bad + 1
        verdict = {"file": str(path), "ok": reason is None, "reason": reason}
        show(verdict if as_json else f"{path}: {reason or 'ok'}")
    raise typer.Exit(1 if num_bad else 0)


@masks.command("diff")
def diff_masks(
    a: Annotated[str, typer.Argument(help="A mask file, or the name of a task.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    folder: Where = None,
    as_json: Json = False,
) -> None:
    """Compare two head masks.

    How many heads they share, how many only one of them has, their Jaccard index, and the same a layer.
    Exit code 0 whether they differ or not.

    \b
    ahamask masks diff asr gr
    ahamask masks diff runs/seed1/asr.json runs/seed2/asr.json --json | jq .jaccard
    """
    from lalm import mask_report
    from lalm.head_mask import MaskFile

    paths = find_mask(a, folder), find_mask(b, folder)
    files = MaskFile.load(paths[0]), MaskFile.load(paths[1])
    show((mask_report.diff_record if as_json else mask_report.diff_page)(paths, files))


def find_mask(mask: str, folder: Path | None) -> Path:
    """The file that `mask` names: a path, or a task that has one head mask in `folder`.

    Raises:
        BadParameter: neither a file nor such a task.
    """
    if Path(mask).is_file():
        return Path(mask)
    paths = _mask_paths(folder)
    found = [path for path in paths if path.stem == mask]
    if len(found) == 1:
        return found[0]
    if found:
        raise typer.BadParameter(f"task {mask!r} has several masks: {', '.join(map(str, found))}")
    known = ", ".join(sorted({path.stem for path in paths}))
    raise typer.BadParameter(f"{mask!r} is neither a file nor a task that has a mask; tasks: {known}")


def show(value: str | dict[str, Any]) -> None:
    """Print a text, or an object as one line of JSON."""
    typer.echo(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _mask_paths(folder: Path | None) -> list[Path]:
    """The mask files of a folder; to have none is an error, lest an empty folder be taken for a good one."""
    from lalm.errors import HeadMaskError

    folder = folder or settings_of().masks_dir or _MASKS
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise HeadMaskError(folder, "no mask file (*.json) in this folder")
    return paths
