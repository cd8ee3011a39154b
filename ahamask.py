"""The command line; the only module that sees all packages.

Nothing slow is imported before a command needs it: `--help` and `masks list` load neither torch nor a model.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import Json, Model, Revision, run, serve, settings_of
from service.keys_cli import keys
from training.cli import evaluate, train

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_MASKS = Path(__file__).resolve().parent / "masks"
_EXIT_CODES = (
    "Exit codes: 0 done; 1 something failed, one line on standard error says what; "
    "2 the command, an argument or a setting is wrong; 130 interrupted."
)
_EXTRA_TRAIN = ("jiwer", "sacrebleu", "tensorboard")
_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}

app = typer.Typer(add_completion=False, no_args_is_help=True, epilog=_EXIT_CODES, **_PLAIN)
masks = typer.Typer(no_args_is_help=True, help="List, show and verify head masks.", **_PLAIN)

_Folder = Annotated[
    Path | None, typer.Argument(exists=True, file_okay=False, help="Folder of mask files, subfolders too.")
]


def main() -> int:
    """Run the command of `sys.argv`; returns the exit code."""
    try:
        code = app(standalone_mode=False) or OK
        if code == INTERRUPTED:
            _complain("interrupted")
        return int(code)
    except typer.TyperException as error:
        return _usage(error)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA_TRAIN:
            raise
        _complain(f"{error.name} is not installed; pip install 'ahamask[train]' has it")
        return FAILED
    except _settings_error() as error:
        _complain(str(error))
        return USAGE
    except _house_errors() as error:
        _complain(str(error))
        return FAILED


@app.callback(invoke_without_command=True)
def ahamask(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Acoustic tasks from one audio language model; a mask over its attention heads selects the task.

    \b
    ahamask serve                               answer recordings over HTTP
    ahamask run asr samples/*.wav               answer recordings without HTTP
    ahamask masks list                          the head masks there are
    ahamask keys new 'call centre'              make an API key
    ahamask train training/recipes/asr.toml     make a head mask
    ahamask evaluate training/recipes/asr.toml  measure it
    """
    if show_version:
        typer.echo(f"ahamask {version('ahamask')}")
        raise typer.Exit(OK)


app.command()(serve)
app.command()(run)
app.add_typer(masks, name="masks")
app.add_typer(keys, name="keys")
app.command()(train)
app.command()(evaluate)


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
        _print(mask_report.record(path, mask_file) if as_json else mask_report.line(path, mask_file))


@masks.command("show")
def show_mask(
    mask: Annotated[str, typer.Argument(help="A mask file, or the name of a task.")],
    folder: Annotated[
        Path | None, typer.Option("--masks", exists=True, file_okay=False, help="Where tasks are looked up.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one head mask.

    Its packed size, the active heads of each layer, what was measured with it and how it was made.
    """
    from lalm import mask_report
    from lalm.head_mask import MaskFile

    path = _find_mask(mask, folder)
    mask_file = MaskFile.load(path)
    _print(mask_report.record(path, mask_file) if as_json else mask_report.page(path, mask_file))


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
    from lalm.families import load_family
    from lalm.head_mask import MaskFile

    identity = load_family(settings.model, revision=settings.revision, dtype=settings.dtype).identity
    num_bad = 0
    for path in _mask_paths(folder or settings.masks_dir_for(identity.name)):
        reason = None
        try:
            MaskFile.load(path).check_model(identity, path)
        except HeadMaskError as error:
            reason, num_bad = error.reason, num_bad + 1
        verdict = {"file": str(path), "ok": reason is None, "reason": reason}
        _print(verdict if as_json else f"{path}: {reason or 'ok'}")
    raise typer.Exit(FAILED if num_bad else OK)


def _mask_paths(folder: Path | None) -> list[Path]:
    """The mask files of a folder; to have none is an error, lest an empty folder be taken for a good one."""
    from lalm.errors import HeadMaskError

    folder = folder or settings_of().masks_dir or _MASKS
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise HeadMaskError(folder, "no mask file (*.json) in this folder")
    return paths


def _find_mask(mask: str, folder: Path | None) -> Path:
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


def _print(value: str | dict[str, Any]) -> None:
    typer.echo(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _usage(error: typer.TyperException) -> int:
    message = error.format_message()
    if "\n" in message:  # called without a command: the message is the help
        print(message, file=sys.stderr)
    else:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        _complain(message.removesuffix(".") + hint)
    return error.exit_code


def _complain(message: str) -> None:
    print(f"ahamask: {' '.join(message.split())}", file=sys.stderr)


def _settings_error() -> type[Exception]:
    from service.settings import SettingsError

    return SettingsError


def _house_errors() -> tuple[type[Exception], ...]:
    """What is told in one line; anything else is a bug and keeps its traceback."""
    from lalm.errors import LalmError
    from service.inference.exceptions import InferenceError
    from training.errors import TrainingError

    return (LalmError, InferenceError, TrainingError, OSError)


if __name__ == "__main__":
    sys.exit(main())
