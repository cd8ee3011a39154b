"""JSON files that people read in a diff: strict when read, atomic and deterministic when written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from lalm.whole_file import write_whole


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: not UTF-8, not JSON, not an object, a key that stands twice, NaN or Infinity.
    """
    return parse_object(path.read_bytes())


def parse_object(encoded: bytes) -> dict[str, Any]:
    """The JSON object in `encoded`.

    Raises:
        ValueError: as `read_object`.
    """
    try:
        content = json.loads(encoded.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def write_object(path: Path, content: Mapping[str, Any], *, mode: int = 0o644) -> None:
    """Write `content` to the file `path`, whole or not at all, as `dump_object` gives it.

    mode: permissions of the file.

    Raises:
        OSError: the file cannot be written.
        ValueError: as `dump_object`.
    """
    write_whole(path, dump_object(content), mode)


def dump_object(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON: one list item a line, keys in their order.

    Raises:
        ValueError: a number is not finite, or a string is not Unicode.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode()
    except ValueError as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
