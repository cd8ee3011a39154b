"""Rules of the house that import-linter cannot see; CONTRIBUTING.md has them all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("lalm", "service", "training")
SOURCES = [
    REPOSITORY / "ahamask.py",
    *(path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))),
]


def names_in(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports or reaches through an attribute, the latter as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


class Usage:
    """Which file uses which names."""

    def __init__(self) -> None:
        self._names = {str(path.relative_to(REPOSITORY)): set(names_in(path)) for path in SOURCES}

    def of(self, *names: str) -> set[str]:
        """Files that use one of `names`; a name that ends with a dot stands for all below it."""
        return {
            path
            for path, used in self._names.items()
            for name in names
            if name in used or (name.endswith(".") and any(other.startswith(name) for other in used))
        }


@pytest.fixture(scope="module")
def usage() -> Usage:
    return Usage()


def test_the_rules_look_at_the_code(usage: Usage) -> None:
    assert len(SOURCES) > 30
    assert "lalm/audio.py" in usage.of("soundfile")


def test_only_the_settings_read_the_environment(usage: Usage) -> None:
    assert usage.of("os.environ", "os.environ.", "os.getenv") <= {"service/settings.py"}


def test_http_exceptions_stay_in_the_error_table(usage: Usage) -> None:
    raised = usage.of("fastapi.HTTPException", "starlette.exceptions.HTTPException")
    assert raised == {"service/errors.py"}


def test_nothing_is_a_cached_global(usage: Usage) -> None:
    assert usage.of("functools.lru_cache", "functools.cache") == set()


@pytest.mark.parametrize("module", ["transformers.models.", "transformers.integrations."])
def test_module_paths_of_transformers_stay_in_the_families(usage: Usage, module: str) -> None:
    # The gate is registered in one of them, and the embedded model is made in the other.
    allowed = {"lalm/head_gate.py", "training/tiny/model.py"}
    assert {user for user in usage.of(module) if not user.startswith("lalm/families/")} <= allowed


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [path for path in SOURCES if path.stem in ("util", "utils", "helpers", "common", "misc")] == []
