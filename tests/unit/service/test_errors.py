from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

import lalm.errors as audio_errors
from service import errors
from service.errors import ERROR_TABLE, ErrorKind, ServiceError, error_kind, install_error_handlers
from service.inference import exceptions as inference_errors

ROOTS = (ServiceError, audio_errors.LalmError, inference_errors.InferenceError)

# One of each, built as the code that raises it does, with the status that clients rely on.
EXPECTED: list[tuple[Exception, int]] = [
    (errors.MalformedBodyError("no boundary"), 400),
    (errors.UnknownTaskError("asv", known=["asr", "gr"]), 404),
    (errors.UploadTimeoutError(120.0), 408),
    (errors.UploadTooLargeError(10), 413),
    (errors.UnsupportedBodyError("text/plain"), 415),
    (errors.InvalidParameterError("twice", param="tasks"), 422),
    (errors.MissingKeyError("no key"), 401),
    (errors.InvalidKeyError("unknown"), 401),
    (errors.AdminKeyNeededError("not yours"), 403),
    (errors.TooManyRequestsOfKeyError(4), 429),
    (errors.InvalidHeadMaskError("shape"), 422),
    (errors.LastTaskError("asr"), 409),
    (errors.HeadMasksReadOnlyError("read-only"), 409),
    (errors.FeedbackOffError(), 404),
    (errors.UnknownRequestError(900.0), 404),
    (errors.FeedbackFullError(2**30), 507),
    (errors.ClientDisconnectedError("gone"), 499),
    (errors.UnknownModelError("whisper-1", known=["asr"]), 404),
    (errors.DeadlineExceededError(1.5), 504),
    (errors.NotReadyError("loading", retry_after_s=2.2), 503),
    (ServiceError("secret"), 500),
    (audio_errors.EmptyAudioError("0 bytes", param="file"), 400),
    (audio_errors.UndecodableAudioError("not audio"), 415),
    (audio_errors.UnsupportedAudioError("9 channels"), 415),
    (audio_errors.AudioTooLargeError("11 bytes", limit_bytes=10), 413),
    (audio_errors.AudioTooLongError("31 s", limit_s=30.0), 413),
    (audio_errors.AudioError("unreadable"), 400),
    (audio_errors.HeadMaskError(Path("secret"), "secret"), 500),
    (audio_errors.ModelError("secret"), 500),
    (audio_errors.LalmError("secret"), 500),
    (inference_errors.PromptTooLongError(120, 100), 413),
    (inference_errors.QueueFullError(2.2), 429),
    (inference_errors.EngineStoppedError("stopped"), 503),
    (inference_errors.OutOfMemoryError(), 503),
    (inference_errors.SequenceFailedError("secret"), 500),
    (inference_errors.InferenceError("secret"), 500),
]


def with_subclasses(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith(("lalm", "service")):  # not those that tests make
            yield from with_subclasses(subclass)


def test_the_table_has_every_class_of_the_trees_and_no_other() -> None:
    declared = {cls for root in ROOTS for cls in with_subclasses(root)}
    assert set(ERROR_TABLE) == declared
    assert {type(error) for error, _ in EXPECTED} == declared


def test_every_class_is_drawn_in_the_docstring_of_its_tree() -> None:
    for cls in with_subclasses(ServiceError):
        assert cls.__name__ in (errors.__doc__ or "")


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/raise/{index}")
    async def fail(request: Request, index: int) -> None:
        request.state.request_id = "r1"
        raise EXPECTED[index][0]

    @app.middleware("http")
    async def give_id(request: Request, call_next):  # type: ignore[no-untyped-def]
        request.state.request_id = "r1"
        return await call_next(request)

    return TestClient(app)


@pytest.mark.parametrize("index", range(len(EXPECTED)), ids=[type(error).__name__ for error, _ in EXPECTED])
def test_an_error_becomes_its_status_and_the_envelope(client: TestClient, index: int) -> None:
    error, status = EXPECTED[index]
    response = client.get(f"/raise/{index}")
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    body = response.json()["error"]
    assert set(body) == {"type", "message", "param", "request_id"}
    assert body["type"] == ERROR_TABLE[type(error)].type
    assert body["request_id"] == "r1"
    if status == 500:
        assert "secret" not in response.text
    else:
        assert body["message"] == str(error)
        assert body["param"] == getattr(error, "param", None)
    assert ("retry-after" in response.headers) == (status in (429, 503))


@pytest.mark.parametrize("cls", [errors.NotReadyError, inference_errors.QueueFullError])
def test_retry_after_is_rounded_up_to_whole_seconds(client: TestClient, cls: type[Exception]) -> None:
    index = [type(each) for each, _ in EXPECTED].index(cls)
    assert client.get(f"/raise/{index}").headers["retry-after"] == "3"


def test_a_class_made_later_takes_the_kind_of_its_base() -> None:
    class Odd(audio_errors.AudioTooLongError):
        pass

    assert error_kind(Odd("x", limit_s=1.0)) == ERROR_TABLE[audio_errors.AudioTooLongError]
    assert error_kind(RuntimeError("x")) == ErrorKind(500, "internal_error")


def test_the_frameworks_own_errors_have_the_envelope_too(client: TestClient) -> None:
    missing = client.get("/nowhere")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found")
    method = client.post("/raise/0")
    assert (method.status_code, method.json()["error"]["type"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "GET"
    wrong = client.get("/raise/one")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (422, "invalid_parameter")
    assert wrong.json()["error"]["param"] == "index"
