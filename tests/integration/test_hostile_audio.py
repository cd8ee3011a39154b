"""Whatever is sent as audio is answered or refused, in bounded memory and processor time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_GROWN_BYTES = 256 * 2**20


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of every file; in a process of its own, for a decoder may end it."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_service", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_no_file_breaks_the_service(records: list[dict[str, Any]]) -> None:
    *files, _ = records
    assert len({file["name"] for file in files}) == len(files) >= 200
    assert [file for file in files if file["status"] not in (200, 400, 413, 415)] == []
    assert {file["type"] for file in files if file["status"] != 200} == {
        "audio_too_long",
        "empty_audio",
        "undecodable_audio",
        "unsupported_audio",
    }


def test_no_file_takes_memory_that_it_does_not_fill(records: list[dict[str, Any]]) -> None:
    assert records[-1]["grown_bytes"] < MAX_GROWN_BYTES


@pytest.mark.parametrize(
    ("part", "status"),
    [
        ("empty: nothing", 400),
        ("samples: nan in WAV", 415),
        ("samples: denormal in WAV", 200),
        ("bomb: 20 minutes of silence in FLAC", 413),
        ("bomb: two minutes of silence in OPUS", 200),
        ("layout: 32 channels", 415),
        ("layout: 768000 Hz", 415),
        ("wav: a list beyond the file", 415),
        ("flac: 2^36 - 1 samples", 415),
        ("polyglot: WAV and ZIP", 200),
        ("other: a concat script", 415),
    ],
)
def test_a_file_is_refused_for_what_it_is(records: list[dict[str, Any]], part: str, status: int) -> None:
    assert [record["status"] for record in records if record.get("name") == part] == [status]
