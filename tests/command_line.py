"""The command line, run inside the test's process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

import ahamask
from service.settings import Settings

Cli = Callable[..., tuple[int, str, str]]


@contextmanager
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """A function from arguments to exit code, standard output and standard error.

    The settings of the environment are unset; logging is put back as it was.
    """
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AHAMASK_{name.upper()}", raising=False)
    monkeypatch.delenv("PORT", raising=False)
    root = logging.getLogger()
    handlers, level, configuration = root.handlers, root.level, structlog.get_config()

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()  # what came before is not the command's
        monkeypatch.setattr(sys, "argv", ["ahamask", *map(str, arguments)])
        code = ahamask.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    try:
        yield call
    finally:
        root.handlers, root.level = handlers, level
        structlog.configure(**configuration)
