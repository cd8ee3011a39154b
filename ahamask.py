"""The command line; the only module that sees all packages.

Nothing slow is imported before a command needs it: `--help` and `masks list` load neither torch nor a model.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from service.cli import run, serve
from service.keys_cli import keys
from service.masks_cli import masks
from service.masks_compile_cli import compile_mask
from service.masks_making_cli import register_making
from training.analysis.cli import analyse, assess
from training.cli import evaluate, train
from training.corpora.cli import prepare

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXIT_CODES = (
    "Exit codes: 0 done; 1 something failed, one line on standard error says what; "
    "2 the command, an argument or a setting is wrong; 130 interrupted."
)
_EXTRAS = {
    "accelerate": "train",
    "jiwer": "train",
    "matplotlib": "train",
    "pycocoevalcap": "captions",
    "sacrebleu": "train",
    "scipy": "train",
    "tensorboard": "train",
    "whisper_normalizer": "train",
}
_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}

app = typer.Typer(add_completion=False, no_args_is_help=True, epilog=_EXIT_CODES, **_PLAIN)


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
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _complain(f"{error.name} is not installed; pip install 'ahamask[{extra}]' has it")
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
    ahamask prepare librispeech ROOT            manifests of a public corpus
    ahamask train training/recipes/asr.toml     make a head mask
    ahamask evaluate training/recipes/asr.toml  measure it
    ahamask analyse masks/tiny-lalm             compare head masks
    ahamask assess training/recipes/asr.toml    how much the wording of an instruction matters
    """
    if show_version:
        typer.echo(f"ahamask {version('ahamask')}")
        raise typer.Exit(OK)


app.command()(serve)
app.command()(run)
register_making(masks)
masks.command("compile")(compile_mask)
app.add_typer(masks, name="masks")
app.add_typer(keys, name="keys")
app.add_typer(prepare, name="prepare")
app.command()(train)
app.command()(evaluate)
app.command()(assess)
app.command()(analyse)


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
