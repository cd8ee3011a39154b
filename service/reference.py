"""The tables of docs/metrics.md and docs/operations.md, from the code: python -m service.reference [--check].

Writes what lies between the markers of a page; with --check it only says whether that is what it would write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from prometheus_client.metrics import MetricWrapperBase
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from service.metrics import Metrics
from service.settings import Settings

_REPOSITORY = Path(__file__).resolve().parent.parent
_BEGIN, _END = "<!-- made by python -m service.reference -->\n", "<!-- end -->\n"
# What a scrape calls a family of this type, beside its name.
_SUFFIXES = {"counter": "_total", "info": "_info"}


def metrics_table() -> str:
    """A row for every series of the service's own: name, type, labels, meaning."""
    families = {}
    labels = {}
    metrics = Metrics()
    for series in vars(metrics).values():
        if isinstance(series, MetricWrapperBase):
            (family,) = series.describe()
            families[family.name] = family
            labels[family.name] = series._labelnames
    rows = [
        (
            f"`{name}{_SUFFIXES.get(family.type, '')}`",
            family.type,
            ", ".join(f"`{label}`" for label in labels[name]),
            family.documentation,
        )
        for name, family in sorted(families.items())
    ]
    return _table(("name", "type", "labels", "meaning"), rows)


def settings_table() -> str:
    """A row for every setting, in the order of the class."""
    rows = [
        (", ".join(_variables(name, field)), _allowed(field), _default(field), str(field.description))
        for name, field in Settings.model_fields.items()
    ]
    return _table(("variable", "value", "default", "meaning"), rows)


PAGES: dict[str, Callable[[], str]] = {
    "docs/metrics.md": metrics_table,
    "docs/operations.md": settings_table,
}


def updated(page: str, table: str) -> str:
    """A page with `table` between its markers.

    Raises:
        ValueError: it has no markers.
    """
    before, found, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not found or not end:
        raise ValueError("the page has no place for its table")
    return f"{before}{_BEGIN}\n{table}\n{_END}{after}"


def main(arguments: list[str]) -> int:
    """The exit code: 1 when --check finds a page that is not up to date."""
    stale = []
    for name, make in PAGES.items():
        path = _REPOSITORY / name
        old = path.read_text(encoding="utf-8")
        new = updated(old, make())
        if new != old:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "up to date")
    return 1 if stale and "--check" in arguments else 0


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |")


def _variables(name: str, field: FieldInfo) -> Iterator[str]:
    alias = field.validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [f"AHAMASK_{name.upper()}"]
    return (f"`{variable}`" for variable in names)


def _allowed(field: FieldInfo) -> str:
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in kinds)
    if get_origin(kinds[0]) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kinds[0]))
    name = {"str": "text", "int": "integer", "float": "number", "bool": "`true`, `false`", "Path": "path"}
    return " ".join([name[kinds[0].__name__], *_bounds(field)])


def _bounds(field: FieldInfo) -> Iterator[str]:
    for bound in field.metadata:
        if isinstance(bound, Gt):
            yield f"> {bound.gt}"
        elif isinstance(bound, Ge):
            yield f"≥ {bound.ge}"
        elif isinstance(bound, Le):
            yield f"≤ {bound.le}"


def _default(field: FieldInfo) -> str:
    default: Any = field.default
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{str(default).removeprefix(f'{_REPOSITORY}/')}`"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
