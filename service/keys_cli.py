"""The commands `keys new`, `keys list` and `keys revoke`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import Json, settings_of

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke API keys.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_File = Annotated[Path | None, typer.Option("--file", help="File of API keys.  [AHAMASK_API_KEYS_FILE]")]


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    admin: Annotated[bool, typer.Option("--admin", help="May change head masks, too.")] = False,
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, help="Requests it may have at a time.  [AHAMASK_API_KEY_MAX_CONCURRENT]"),
    ] = None,
    file: _File = None,
) -> None:
    """Make a key and print it.

    It is printed this once: the file has only its digest. A running service takes it at once.

    \b
    ahamask keys new "call centre" --max-concurrent 4 --file keys.json
    """
    from service.keys import Scope, new_key

    key, secret = new_key(_path(file), name, Scope.ADMIN if admin else Scope.INFER, max_concurrent)
    print(f"ahamask: made key {key.id} ({key.scope.value}) for {key.name}", file=sys.stderr)
    typer.echo(secret)


@keys.command("list")
def list_keys(file: _File = None, as_json: Json = False) -> None:
    """List the keys: id, scope, requests at a time, when made, name."""
    from service.keys import KeyFile

    for key in KeyFile.load(_path(file)).keys:
        record: dict[str, Any] = key.model_dump(mode="json", exclude={"sha256"})
        limit = key.max_concurrent or "-"
        line = f"{key.id}\t{key.scope.value}\t{limit}\t{record['created']}\t{key.name}"
        typer.echo(json.dumps(record, ensure_ascii=False) if as_json else line)


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")], file: _File = None
) -> None:
    """Revoke a key.

    A running service refuses its next request; one that is being answered is answered.
    """
    from service.keys import revoke_key

    key = revoke_key(_path(file), key_id)
    print(f"ahamask: revoked key {key.id} ({key.scope.value}) of {key.name}", file=sys.stderr)


def _path(file: Path | None) -> Path:
    path = file or settings_of().api_keys_file
    if path is None:
        raise typer.BadParameter("give --file, or set AHAMASK_API_KEYS_FILE")
    return path
