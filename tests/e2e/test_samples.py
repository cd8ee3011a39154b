"""The recordings of samples/ through the service, with the embedded model and its shipped head masks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fastapi.testclient import TestClient
from openai import OpenAI

from service.app import create_app
from service.settings import Settings
from tests.ready_client import ready_client
from tests.spoken_samples import SPOKEN
from training.tiny.samples import ENCODINGS, as_file

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
EXPECTED: list[dict[str, Any]] = json.loads((SAMPLES / "expected.json").read_text(encoding="utf-8"))
PAIRS = [entry for entry in EXPECTED if isinstance(entry["file"], list)]
FILES = sorted({entry["file"] for entry in EXPECTED if entry not in PAIRS})
MASKS_DIR = ROOT / "masks" / "tiny-lalm"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(Settings(masks_dir=MASKS_DIR))
    with ready_client(app) as client:
        yield client


def expected_of(file: str) -> dict[str, Any]:
    return {entry["task"]: entry["result"] for entry in EXPECTED if entry["file"] == file}


def results(client: TestClient, content: bytes, file: str) -> dict[str, Any]:
    """What every task answers to one upload."""
    response = client.post(f"/tasks?tasks={','.join(expected_of(file))}", files={"file": content})
    assert response.status_code == 200, response.text
    return {task: answer["result"] for task, answer in response.json()["results"].items()}


def test_every_recording_has_an_answer_of_every_task_that_asks_about_its_kind() -> None:
    shipped = {path.stem for path in MASKS_DIR.glob("*.json")}
    assert sorted(path.name for path in SAMPLES.glob("*.wav")) == FILES
    kinds = Counter(frozenset(expected_of(file)) for file in FILES)
    others = {"aac", "asv", "osr"}  # about sounds, about two recordings, about two speakers at once
    assert others < shipped
    assert kinds.pop(frozenset(shipped - others)) >= 8
    assert kinds.keys() == {frozenset({"aac"}), frozenset({"osr"})}
    assert min(kinds.values()) >= 2
    assert {entry["result"]["label"] for entry in PAIRS} == {"same", "different"}


@pytest.mark.parametrize("file", FILES)
def test_every_task_answers_it_right(client: TestClient, file: str) -> None:
    assert results(client, (SAMPLES / file).read_bytes(), file) == expected_of(file)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda entry: "+".join(entry["file"]))
def test_two_recordings_are_compared(client: TestClient, pair: dict[str, Any]) -> None:
    files = [("file", (SAMPLES / name).read_bytes()) for name in pair["file"]]
    response = client.post(f"/tasks/{pair['task']}", files=files)
    assert response.json()["result"] == pair["result"]


@pytest.mark.parametrize("file", FILES)
def test_a_raw_body_is_answered_alike(client: TestClient, file: str) -> None:
    content, headers = (SAMPLES / file).read_bytes(), {"Content-Type": "audio/wav"}
    for task, result in expected_of(file).items():
        response = client.post(f"/tasks/{task}", content=content, headers=headers)
        assert response.json()["result"] == result


@pytest.mark.parametrize("task", ["asr", "s2tt", "asr-gr", "gr-ser-asr-json"])
def test_events_join_to_the_answer(client: TestClient, task: str) -> None:
    for path in SPOKEN:
        response = client.post(f"/tasks/{task}?stream=true", content=path.read_bytes())
        events = [
            (kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
            for kind, data in (each.split("\n") for each in response.text.strip().split("\n\n"))
        ]
        *deltas, (last, answer) = events
        assert last == "done"
        assert {kind for kind, _ in deltas} == {"delta"}
        assert "".join(data["delta"] for _, data in deltas) == answer["text"]
        assert answer["result"] == expected_of(path.name)[task]


@pytest.mark.parametrize("path", SPOKEN, ids=lambda path: path.stem)
def test_openais_client_is_answered_alike(client: TestClient, path: Path) -> None:
    audio = OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client).audio
    expected = expected_of(path.name)
    transcript, translation = (
        each.create(model="tiny-lalm", file=path).text for each in (audio.transcriptions, audio.translations)
    )
    assert (transcript, translation) == (expected["asr"]["text"], expected["s2tt"]["text"])
    stream = audio.transcriptions.create(model="asr", file=path, stream=True)
    deltas = [event.delta for event in stream if event.type == "transcript.text.delta"]
    assert "".join(deltas) == transcript


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding[0])
@pytest.mark.parametrize("file", FILES)
def test_other_formats_are_answered_alike(
    client: TestClient, file: str, encoding: tuple[str, str, int]
) -> None:
    wave, _ = soundfile.read(SAMPLES / file, dtype="float32")
    assert results(client, as_file(wave, *encoding), file) == expected_of(file)
