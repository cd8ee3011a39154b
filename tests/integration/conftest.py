from __future__ import annotations

from pathlib import Path

import pytest

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
