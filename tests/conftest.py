from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from lalm.families import load_family
from lalm.family import ModelFamily
from tests.command_line import Cli, command_line
from tests.toy import write_toy_checkpoint

# The same examples on every machine, however slow: a test fails for the code, not for the clock or dice.
settings.register_profile(
    "ahamask", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ahamask")

torch.set_num_threads(1)  # the tensors of the toy model are small: threads that wait for each other cost more


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: 3 layers x 8 heads (2 key-value heads), random weights, float16."""
    return write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy-lalm")


@pytest.fixture(scope="session")
def toy_family(toy_checkpoint: Path) -> ModelFamily:
    """The toy checkpoint, loaded in float32 on the CPU."""
    return load_family(toy_checkpoint)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with command_line(monkeypatch, capsys) as call:
        yield call


def pytest_sessionfinish() -> None:
    """Wait for models that load: Python aborts at its end while torch is at work in a daemon thread."""
    for thread in threading.enumerate():
        if thread.name == "loading":
            thread.join(120)
