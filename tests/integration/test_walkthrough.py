"""docs/walkthrough.md, run as it is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lalm.head_mask import MaskFile
from tests.served import free_port

REPOSITORY = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```sh\n(.*?)^```", (REPOSITORY / "docs" / "walkthrough.md").read_text("utf-8"), re.M | re.S
)
SHORT = {"NUM_TRAIN": "24", "NUM_VALID": "6", "NUM_TEST": "6", "STEPS": "3"}
SHELL = "set -e; trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"  # the first error ends it, and the service
LIMIT_S = 1800

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "espeak-ng"))), reason="needs bash, curl and espeak-ng"
)


def walk(folder: Path, variables: dict[str, str]) -> tuple[MaskFile, dict[str, Any], str]:
    """Run every block in one shell; returns the mask file, the service's answer and the right answer."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "ahamask").write_text(f'#!/bin/sh\nexec {sys.executable} -m ahamask "$@"\n')
    (commands / "ahamask").chmod(0o755)
    (folder / "lalm").symlink_to(REPOSITORY / "lalm")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AHAMASK_")}
    done = subprocess.run(
        ["bash", "-c", "\n".join([SHELL, *BLOCKS])],
        cwd=folder,
        env={
            **environment,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "PORT": str(free_port()),
            "WORK": str(folder / "work"),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    work = folder / "work"
    right = json.loads((work / "test" / "manifest.jsonl").read_text().splitlines()[1])["text"]
    return (
        MaskFile.load(work / "masks" / "confirm.json"),
        json.loads((work / "answer.json").read_text()),
        right,
    )


def test_the_walkthrough_ends_with_a_new_task_served(tmp_path: Path) -> None:
    """Shortened by the document's own variables: all of its commands, too few steps for a good mask."""
    mask_file, answer, _ = walk(tmp_path, SHORT)
    assert mask_file.evaluation["num_examples"] == 6
    assert {"ifr", "acc_answer", "acc_voice"} <= set(mask_file.evaluation)
    assert answer["task"] == "confirm"
    assert answer["head_mask"]["active_heads"] == mask_file.head_mask.num_active


@pytest.mark.slow
def test_the_whole_walkthrough_ends_with_right_answers(tmp_path: Path) -> None:
    mask_file, answer, right = walk(tmp_path, {})
    measured = {key: mask_file.evaluation[key] for key in ("ifr", "acc_answer", "acc_voice")}
    assert all(isinstance(value, float) and value >= 80 for value in measured.values()), measured
    assert answer["format_ok"]
    assert answer["result"]["answer"] == right.split(" | ")[0]
