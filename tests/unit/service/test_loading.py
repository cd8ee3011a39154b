from __future__ import annotations

import joblib
import pytest
import torch

from service.loading import num_threads
from service.settings import Settings


@pytest.mark.parametrize(("cores", "allowed", "expected"), [(64, 3, 3), (2, 4, 2)])
def test_there_are_no_more_threads_than_cpus(
    monkeypatch: pytest.MonkeyPatch, cores: int, allowed: int, expected: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(joblib, "cpu_count", lambda: allowed)
    assert num_threads(Settings()) == expected
    assert num_threads(Settings(torch_threads=5)) == 5
