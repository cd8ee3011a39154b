from __future__ import annotations

import json
from pathlib import Path

from benchmarks.salmonn_gpu import main


def test_the_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--small", "--clients", "1", "2", "--rounds", "2", "--tokens", "5", "--audio-s", "0.5"]
    figures = main([*options, "--folder", str(tmp_path), "--out", str(out)])
    assert json.loads(out.read_text()) == figures
    assert (figures["device"], figures["dtype"], figures["active heads"]) == ("CPU", "float32", "15 of 16")
    for num_clients in (1, 2):
        measured = {
            key: value for key, value in figures.items() if key.startswith(f"{num_clients} at a time")
        }
        assert len(measured) == 6
        assert all(value > 0 for value in measured.values())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # the weights are gone
