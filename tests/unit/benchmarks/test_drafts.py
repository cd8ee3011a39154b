from __future__ import annotations

import pytest

from benchmarks import drafts


def test_every_task_of_one_recording_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    figures = drafts.main(["--recordings", "1", "--rounds", "1"])
    assert set(figures) >= {"asr", "gr", "asr-gr-json"}
    assert "asv" not in figures  # two recordings
    assert figures["gr"]["drafted_steps"] == 0
    assert figures["asr-gr-json"]["drafted_steps"] < figures["asr-gr-json"]["generated_steps"] - 5
    assert figures["asr"]["drafted_steps"] == figures["asr"]["generated_steps"]
    table = capsys.readouterr().out
    assert all(f"| {task} |" in table for task in figures)
