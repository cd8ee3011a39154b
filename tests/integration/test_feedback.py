"""Corrected answers over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lalm.head_mask import MaskFile
from service.app import create_app
from service.keys import Scope, new_key
from service.routes.feedback import MAX_FEEDBACK_BYTES
from service.settings import Settings
from tests.fake_engine import TASKS, FakeEngine, recording, write_masks
from tests.ready_client import ready_client
from tests.served import LIMIT_S, WAV
from training.manifest import load_manifest
from training.splits import load_any

Start = Callable[..., TestClient]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    write_masks(tmp_path / "masks")
    with ExitStack() as stack:

        def make(**options: Any) -> TestClient:
            app = create_app(Settings(masks_dir=tmp_path / "masks", **options), FakeEngine())
            return stack.enter_context(ready_client(app))

        yield make


def ask(client: TestClient, path: str = "/tasks/gr", seconds: float = 0.5, **headers: str) -> Any:
    response = client.post(path, content=recording(seconds), headers={**WAV, **headers})
    assert response.status_code == 200
    return response


def correct(client: TestClient, request_id: str, text: str = "male", **more: Any) -> Any:
    headers = more.pop("headers", None)
    body = {"request_id": request_id, "text": text, **more}
    return client.post("/feedback", json=body, headers=headers)


def kind_of(response: Any) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["type"], error["param"]


def task_spec(tmp_path: Path, name: str) -> Any:
    return MaskFile.load(tmp_path / "masks" / f"{name}.json").task


def test_it_is_off_by_default(start: Start, tmp_path: Path) -> None:
    client = start()
    answer = ask(client)
    assert "x-feedback-id" not in answer.headers
    response = correct(client, answer.json()["id"])
    assert kind_of(response) == (404, "feedback_off", None)
    assert "AHAMASK_FEEDBACK_DIR" in response.json()["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_a_correction_becomes_an_example_to_train_on(start: Start, folder: Path, tmp_path: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True)
    answer = ask(client)
    request_id = answer.headers["x-feedback-id"]
    assert request_id == answer.json()["id"]
    response = correct(client, request_id, " Female\n")
    assert response.status_code == 200
    assert response.json() == {
        "request_id": request_id,
        "task": "gr",
        "text": "Female",
        "audio_kept": True,
    }
    (example,) = load_any(folder, task_spec(tmp_path, "gr")).examples
    assert example.text == "Female"
    assert [len(waveform) for waveform in example.waveforms(30.0)] == [8000]


def test_where_audio_may_not_be_kept_only_the_text_is(start: Start, folder: Path) -> None:
    client = start(feedback_dir=folder)
    answer = ask(client)
    assert correct(client, answer.json()["id"]).json()["audio_kept"] is False
    (file,) = (file for file in folder.rglob("*") if file.is_file())
    assert file == folder / "corrections" / "gr.jsonl"
    entry = json.loads(file.read_text(encoding="utf-8"))
    assert (entry["request_id"], entry["text"]) == (answer.json()["id"], "male")


def test_an_id_that_a_client_chose_corrects_nothing(start: Start, folder: Path, tmp_path: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True)
    first, second = (ask(client, seconds=seconds, **{"X-Request-Id": "mine"}) for seconds in (0.25, 0.5))
    assert first.json()["id"] == second.json()["id"] == "mine"
    assert kind_of(correct(client, "mine")) == (404, "unknown_request", "request_id")
    for answer in (first, second):
        assert correct(client, answer.headers["x-feedback-id"]).status_code == 200
    examples = load_manifest(folder / "gr.jsonl", task_spec(tmp_path, "gr")).examples
    assert [len(example.waveforms(30.0)[0]) for example in examples] == [4000, 8000]


def test_what_is_not_in_the_form_of_the_task_is_refused(start: Start, folder: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True)
    request_id = ask(client).json()["id"]
    for text in ("robot", "male female", "  "):
        assert kind_of(correct(client, request_id, text)) == (422, "invalid_parameter", "text")
    assert kind_of(correct(client, request_id, task="asr")) == (422, "invalid_parameter", "task")
    assert kind_of(correct(client, request_id, why="x")) == (422, "invalid_parameter", "why")
    assert list(folder.rglob("*.jsonl")) == []
    several = ask(client, "/tasks?tasks=asr,gr").json()["id"]
    assert kind_of(correct(client, several)) == (422, "invalid_parameter", "task")
    assert correct(client, several, task="gr").status_code == 200
    assert correct(client, several, "hello", task="asr").status_code == 200
    assert sorted(path.name for path in folder.glob("*.jsonl")) == ["asr.jsonl", "gr.jsonl"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[]", 422),
        (b'{"request_id": 1, "text": "x"}', 422),
        (b'{"request_id": "a", "text": "\\ud800"}', 400),
        (b" " * (MAX_FEEDBACK_BYTES + 1), 413),
    ],
)
def test_a_wrong_body_is_told(start: Start, folder: Path, body: bytes, status: int) -> None:
    assert start(feedback_dir=folder).post("/feedback", content=body).status_code == status


def test_unknown_and_expired_requests_are_404(start: Start, folder: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True, feedback_recent_s=1e-9)
    for request_id in ("0" * 32, ask(client).json()["id"]):
        assert kind_of(correct(client, request_id)) == (404, "unknown_request", "request_id")
    small = start(feedback_dir=folder, feedback_audio=True, feedback_recent_bytes=2000)
    assert kind_of(correct(small, ask(small).json()["id"]))[1] == "unknown_request"


def test_a_service_that_nobody_asks_removes_what_is_too_old(start: Start, folder: Path) -> None:
    audio = folder / "audio" / "gr" / f"20010101T000000Z-{1:032x}-0.flac"
    audio.parent.mkdir(parents=True)
    audio.write_bytes(b"old")
    line = {"path": str(audio.relative_to(folder)), "text": "male", "task": "gr"}
    (folder / "gr.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    client = start(feedback_dir=folder)
    end_s = time.monotonic() + LIMIT_S
    while audio.exists() and time.monotonic() < end_s:
        client.get("/healthz")
    assert [file for file in folder.rglob("*") if file.is_file()] == []


def test_a_full_folder_is_507(start: Start, folder: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True, feedback_max_bytes=100)
    assert kind_of(correct(client, ask(client).json()["id"])) == (507, "feedback_full", None)
    assert [file for file in folder.rglob("*") if file.is_file()] == []


def test_only_the_key_of_a_request_corrects_it(start: Start, folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, other, admin = (
        {"Authorization": f"Bearer {new_key(keys, name, scope, None)[1]}"}
        for name, scope in (("mine", Scope.INFER), ("other", Scope.INFER), ("admin", Scope.ADMIN))
    )
    client = start(feedback_dir=folder, api_keys_file=keys)
    request_id = ask(client, **mine).json()["id"]
    assert correct(client, request_id).status_code == 401
    refusals = [correct(client, request_id, headers=key) for key in (other, admin)]
    refusals.append(correct(client, "0" * 32, headers=mine))
    assert {kind_of(refusal) for refusal in refusals} == {(404, "unknown_request", "request_id")}
    assert len({refusal.json()["error"]["message"] for refusal in refusals}) == 1
    assert correct(client, request_id, headers=mine).status_code == 200


def test_other_ways_to_ask_can_be_corrected_too(start: Start, folder: Path, tmp_path: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True)
    form = {"files": {"file": ("a.wav", recording())}, "data": {"model": "asr"}}
    transcript = client.post("/v1/audio/transcriptions", **form)  # type: ignore[arg-type]
    streamed = ask(client, "/tasks/asr?stream=true")
    for answer in (transcript, streamed):
        assert correct(client, answer.headers["x-feedback-id"], "hello").status_code == 200
    assert len(load_manifest(folder / "asr.jsonl", task_spec(tmp_path, "asr")).examples) == 2
    pair = client.post("/tasks/asv", files=[("file", ("a.wav", recording(s))) for s in (0.25, 0.5)])
    assert correct(client, pair.headers["x-feedback-id"], "no").status_code == 200
    (example,) = load_manifest(folder / "asv.jsonl", task_spec(tmp_path, "asv")).examples
    assert [len(waveform) for waveform in example.waveforms(30.0)] == [4000, 8000]
    assert TASKS["asv"]["num_audios"] == 2


def test_a_recording_that_was_heard_in_pieces_is_not_trained_on(start: Start, folder: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True)
    answer = ask(client, "/tasks/asr", seconds=31.0)
    assert correct(client, answer.json()["id"], "a long story").json()["audio_kept"] is False
    assert list(folder.glob("*.jsonl")) == []
    assert "a long story" in (folder / "corrections" / "asr.jsonl").read_text(encoding="utf-8")


def test_many_at_a_time_are_all_written(start: Start, folder: Path, tmp_path: Path) -> None:
    client = start(feedback_dir=folder, feedback_audio=True)
    request_ids = [ask(client).json()["id"] for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request_id: correct(client, request_id), request_ids))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert len(load_manifest(folder / "gr.jsonl", task_spec(tmp_path, "gr")).examples) == 16
