"""The application on Ray Serve, as deploy/ray/try.py runs it: minutes, and only where Ray is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_no_request_is_lost_with_a_copy_and_too_many_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    out = tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, str(REPOSITORY / "deploy/ray/try.py"), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["a second copy comes"]["copies_after"] == 2
    killed, refused = result["one of two copies killed"], result["more than they take"]
    assert sum(killed["answers"].values()) == killed["requests"]
    assert killed["copies_after"] == 2
    assert refused["statuses"]["200"] > 0
    assert refused["statuses"]["503"] > 0
