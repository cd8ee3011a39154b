from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from service.settings import Settings
from tests.fake_engine import FakeEngine, write_masks
from tests.served import free_port


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The masks of the fake engine's tasks, a free port, one slot and one place to wait."""
    write_masks(tmp_path)
    return Settings(masks_dir=tmp_path, port=free_port(), max_slots=1, max_waiting=1)


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
