"""The wire, against an engine that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from lalm.head_mask import MaskFile
from lalm.task import LongAudio
from service.app import create_app
from service.inference.exceptions import QueueFullError, SequenceFailedError
from service.settings import Settings
from tests.fake_engine import LABELS, TEXTS, TIMINGS_MS, FakeEngine, head_mask, recording, write_masks
from tests.ready_client import ready_client


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_masks(tmp_path)
    return Settings(masks_dir=tmp_path, max_upload_bytes=100_000, max_audio_s=2.0, max_slots=1, max_waiting=1)


@pytest.fixture
def app(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings, engine)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with ready_client(app) as client:
        yield client


def error_of(response: Any) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"type", "message", "param", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    return error


def series(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def num_requests(client: TestClient, task: str, status: int) -> float:
    key = ("ahamask_requests_total", frozenset({("task", task), ("status", str(status))}))
    return series(client).get(key, 0.0)


def test_a_form_is_answered_with_everything_the_wire_promises(client: TestClient, engine: FakeEngine) -> None:
    response = client.post("/tasks/asr-gr", files={"file": recording()}, headers={"X-Request-Id": "abc-1"})
    assert response.status_code == 200
    answer = response.json()
    timings = answer.pop("timings_ms")
    assert answer == {
        "id": "abc-1",
        "task": "asr-gr",
        "text": "turn on the light | male",
        "result": {"transcript": "turn on the light", "gender": "male"},
        "no_speech": False,
        "audio": {"duration_s": 0.5, "truncated": False},
        "model": "toy",
        "head_mask": {"sha256": head_mask("asr-gr").sha256, "active_heads": 3, "num_heads": 8},
        "usage": {"audio_tokens": 7, "output_tokens": 3},
        "finish_reason": "stop",
        "format_ok": True,
    }
    assert {stage: timings[stage] for stage in ("queue", "encoder", "prefill", "decode")} == {
        stage: TIMINGS_MS[stage] for stage in ("queue", "encoder", "prefill", "decode")
    }
    assert timings["total"] == pytest.approx(timings["audio"] + TIMINGS_MS["total"], abs=0.01)
    (row,) = engine.requests[0].rows
    assert (row.task, row.head_mask, row.instruction, row.max_new_tokens) == (
        "asr-gr",
        head_mask("asr-gr"),
        None,
        16,
    )


@pytest.mark.parametrize(
    "content_type", ["audio/wav", "audio/x-flac", "video/webm; codecs=opus", "application/octet-stream", None]
)
def test_the_recording_may_be_the_body(client: TestClient, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post("/tasks/gr", content=recording(file_format="FLAC"), headers=headers)
    assert response.status_code == 200
    assert response.json()["result"] == {"label": "male"}


def test_audio_is_decoded_beside_the_event_loop(client: TestClient, engine: FakeEngine) -> None:
    client.post("/tasks/asr", content=recording(), headers={"Content-Type": "audio/wav"})
    assert [name.startswith("audio") for name in engine.family.threads] == [True]


def test_several_tasks_share_one_upload_and_one_pass(client: TestClient, engine: FakeEngine) -> None:
    response = client.post("/tasks", params={"tasks": "gr,asr"}, files={"file": recording()})
    assert response.status_code == 200
    results = response.json()["results"]
    assert list(results) == ["gr", "asr"]
    assert {name: answer["text"] for name, answer in results.items()} == {"gr": "Male", "asr": TEXTS["asr"]}
    assert {answer["id"] for answer in results.values()} == {response.json()["id"]}
    (request,) = engine.requests
    assert [(row.task, row.head_mask) for row in request.rows] == [
        ("gr", head_mask("gr")),
        ("asr", head_mask("asr")),
    ]
    assert len(request.audio) == len(engine.family.threads) == 1


def test_a_pair_task_takes_two_files(client: TestClient, engine: FakeEngine) -> None:
    files = [("file", recording(0.5)), ("file", recording(0.25))]
    response = client.post("/tasks/asv", files=files)
    assert response.status_code == 200
    assert response.json()["audio"]["duration_s"] == 0.75
    assert [features.num_frames for features in engine.requests[0].audio] == [8000, 4000]


def test_an_answer_in_another_form_is_said_to_be(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXTS, "gr", "a man")
    answer = client.post("/tasks/gr", files={"file": recording()}).json()
    assert (answer["text"], answer["result"], answer["format_ok"]) == ("a man", {"label": None}, False)


WAV = {"Content-Type": "audio/wav"}
TEXT = {"Content-Type": "text/plain"}
LONG, BIG, BIGGER = recording(2.1), bytes(100_001), bytes(200_000)
TWO = [("file", b"x"), ("file", b"y")]
REFUSALS: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    # name: (url, arguments of post, status, type, what the message says)
    "unknown task": (
        "/tasks/diarize",
        {"files": {"file": b"x"}},
        404,
        "unknown_task",
        "asr, asr-gr, asv, gr",
    ),
    "unknown among several": (
        "/tasks?tasks=asr,diarize",
        {"files": {"file": b"x"}},
        404,
        "unknown_task",
        "diarize",
    ),
    "asked twice": ("/tasks?tasks=asr,gr,asr", {"files": {"file": b"x"}}, 422, "invalid_parameter", "'asr'"),
    "mixed pairs": ("/tasks?tasks=asr,asv", {"files": {"file": b"x"}}, 422, "invalid_parameter", "asv: 2"),
    "no tasks": ("/tasks", {"files": {"file": b"x"}}, 422, "invalid_parameter", "tasks"),
    "empty body": ("/tasks/asr", {"content": b"", "headers": WAV}, 400, "empty_audio", "empty"),
    "no body": ("/tasks/asr", {}, 400, "empty_audio", "empty"),
    "empty file": ("/tasks/asr", {"files": {"file": b""}}, 400, "empty_audio", "empty"),
    "not audio": ("/tasks/asr", {"content": b"hello" * 99, "headers": WAV}, 415, "undecodable_audio", "WAV"),
    "too long": ("/tasks/asr", {"content": LONG, "headers": WAV}, 413, "audio_too_long", "2 s"),
    "too many bytes": ("/tasks/asr", {"content": BIG, "headers": WAV}, 413, "upload_too_large", "100000"),
    "big file": ("/tasks/asr", {"files": {"file": BIG}}, 413, "audio_too_large", "100000"),
    "big form": ("/tasks/asr", {"files": {"file": BIGGER}}, 413, "upload_too_large", "165536"),
    "text": ("/tasks/asr", {"content": b"x", "headers": TEXT}, 415, "unsupported_body", "form"),
    "no boundary": (
        "/tasks/asr",
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed_body",
        "boundary",
    ),
    "broken form": (
        "/tasks/asr",
        {"content": b"rubbish" * 9, "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        400,
        "malformed_body",
        "multipart",
    ),
    "two files for one": ("/tasks/asr", {"files": TWO}, 422, "invalid_parameter", "not 2"),
    "one file for two": ("/tasks/asv", {"files": {"file": b"x"}}, 422, "invalid_parameter", "2 parts"),
    "body for two": ("/tasks/asv", {"content": b"x", "headers": WAV}, 422, "invalid_parameter", "2 rec"),
    "another part": ("/tasks/asr", {"files": {"audio": b"x"}}, 422, "invalid_parameter", "'audio'"),
    "a field": ("/tasks/asr", {"files": {"file": (None, b"x")}}, 422, "invalid_parameter", "filename"),
    "no such page": ("/task/asr", {}, 404, "not_found", "/task/asr"),
    "no such method": ("/healthz", {}, 405, "method_not_allowed", "POST"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_answered_is_refused(client: TestClient, engine: FakeEngine, name: str) -> None:
    url, arguments, status, kind, said = REFUSALS[name]
    response = client.post(url, **arguments)
    assert (response.status_code, error_of(response)["type"]) == (status, kind)
    assert said in error_of(response)["message"]
    assert engine.requests == []
    assert client.post("/tasks/asr", files={"file": recording()}).status_code == 200


def test_the_bad_one_of_two_recordings_is_named(client: TestClient) -> None:
    response = client.post("/tasks/asv", files=[("file", recording()), ("file", b"hello")])
    assert (response.status_code, error_of(response)["param"]) == (415, "file[1]")


def test_a_task_says_what_becomes_of_a_long_recording_and_does_it(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_masks(tmp_path)
    monkeypatch.setitem(TEXTS, "gr-first", "male")
    gr = MaskFile.load(tmp_path / "gr.json")
    first = gr.task.model_copy(update={"name": "gr-first", "long_audio": LongAudio.FIRST_WINDOW})
    gr.model_copy(update={"task": first}).save(tmp_path / "gr-first.json")
    long = recording(engine.family.max_audio_s + 1)
    with ready_client(create_app(Settings(masks_dir=tmp_path, max_audio_s=60), engine)) as client:
        told = {each["name"]: each["long_audio"] for each in client.get("/tasks").json()["tasks"]}
        answers = {name: client.post(f"/tasks/{name}", content=long, headers=WAV) for name in told}
    assert told["asr"] == {"policy": "split", "segment_s": 30.0, "max_audio_s": 60.0}
    assert told["gr"] == {"policy": "refuse", "segment_s": 30.0, "max_audio_s": 30.0}
    assert told["gr-first"] == {"policy": "first-window", "segment_s": 30.0, "max_audio_s": 60.0}
    assert len(answers["asr"].json()["segments"]) == 2
    assert answers["gr-first"].json()["audio"] == {"duration_s": 31.0, "truncated": True}
    assert answers["gr"].status_code == 413
    assert "30 s" in error_of(answers["gr"])["message"]


@pytest.mark.parametrize(
    ("given", "kept"), [("a.B_c-9", True), ("x" * 64, True), ("x" * 65, False), ("a b", False)]
)
def test_a_request_id_is_kept_if_harmless(client: TestClient, given: str, kept: bool) -> None:
    response = client.get("/tasks/nothing", headers={"X-Request-Id": given})
    assert (response.headers["x-request-id"] == given) is kept
    assert error_of(response)["request_id"] != ""


def test_a_full_queue_is_429_with_retry_after(client: TestClient, engine: FakeEngine) -> None:
    engine.error = QueueFullError(2.5)
    response = client.post("/tasks/asr", files={"file": recording()})
    assert (response.status_code, error_of(response)["type"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "3"
    assert num_requests(client, "asr", 429) == 1


@pytest.mark.parametrize("error", [SequenceFailedError("secret"), RuntimeError("secret")])
def test_a_failure_inside_says_nothing_of_the_inside(
    client: TestClient, engine: FakeEngine, error: Exception
) -> None:
    engine.error = error
    response = client.post("/tasks/asr", files={"file": recording()})
    assert (response.status_code, error_of(response)["type"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    engine.error = None
    assert client.post("/tasks/asr", files={"file": recording()}).status_code == 200


def test_the_tasks_are_listed_and_described(client: TestClient) -> None:
    listed = client.get("/tasks").json()
    assert listed["model"] == "toy"
    assert [task["name"] for task in listed["tasks"]] == ["asr", "asr-gr", "asv", "gr"]
    described = client.get("/tasks/gr").json()
    assert described in listed["tasks"]
    assert described["output"]["labels"] == LABELS
    assert described["head_mask"] == {"sha256": head_mask("gr").sha256, "active_heads": 5, "num_heads": 8}
    assert (described["title"], described["num_audios"], described["max_new_tokens"]) == ("GR", 1, 16)
    assert client.get("/tasks/diarize").status_code == 404


def test_requests_are_counted_by_task_and_unknown_names_share_one_label(client: TestClient) -> None:
    for name in ("asr", "nonsense-1", "nonsense-2"):
        client.post(f"/tasks/{name}", files={"file": recording()})
    client.post("/tasks?tasks=asr,gr", files={"file": recording()})
    found = series(client)
    assert num_requests(client, "asr", 200) == 2
    assert num_requests(client, "gr", 200) == 1
    assert num_requests(client, "unknown", 404) == 2
    tasks = {dict(labels)["task"] for name, labels in found if name == "ahamask_requests_total"}
    assert tasks == {"asr", "gr", "unknown"}
    assert found["ahamask_audio_seconds_total", frozenset()] == 1.0
    assert found["ahamask_active_heads", frozenset({("task", "gr")})] == 5
    assert found["ahamask_audio_decoding_seconds_count", frozenset()] == 2
    assert found["ahamask_request_seconds_count", frozenset({("task", "asr")})] == 2


def test_each_application_has_series_of_its_own(client: TestClient, settings: Settings) -> None:
    client.post("/tasks/asr", files={"file": recording()})
    other = create_app(settings, FakeEngine())
    with TestClient(other) as other_client:
        assert num_requests(other_client, "asr", 200) == 0


def test_the_page_of_the_api_shows_bodies_answers_and_errors(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    post = document["paths"]["/tasks/{task}"]["post"]
    assert {"multipart/form-data", "audio/*"} <= set(post["requestBody"]["content"])
    assert {"200", "400", "404", "413", "415", "422", "429", "503"} <= set(post["responses"])
    for status, response in post["responses"].items():
        schema = response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert schema == ("TaskAnswer" if status == "200" else "ErrorEnvelope")
    answer = document["components"]["schemas"]["TaskAnswer"]
    assert set(answer["examples"][0]) == set(answer["properties"])
    assert "HTTPValidationError" not in json.dumps(document)
    assert client.get("/docs").status_code == 200
