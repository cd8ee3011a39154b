"""Every error that a client can meet, and the one table from exception class to HTTP status.

The service's own errors (those of audio, masks and models are drawn in lalm/errors.py, those of the engine in
service/inference/exceptions.py):

    ServiceError                   .param: the part of the request at fault, or None
    ├ MalformedBodyError           the body is not what its Content-Type says
    ├ UnknownModelError            OpenAI's `model` names neither the model nor a task
    ├ UnknownTaskError             no mask file gives this task; the message names those that exist
    ├ UploadTimeoutError           the body took too long to arrive
    ├ UploadTooLargeError          more bytes than the limit, which the message names
    ├ UnsupportedBodyError         the Content-Type is neither multipart/form-data nor audio
    ├ InvalidParameterError        a parameter or the number of recordings does not fit the task
    ├ MissingKeyError              there is no API key in the request
    ├ InvalidKeyError              an API key that is not known
    ├ AdminKeyNeededError          a key that may not do this
    ├ TooManyRequestsOfKeyError    a key has as many requests as it may have at a time   .retry_after_s
    ├ InvalidHeadMaskError         a head mask file was sent that cannot be used
    ├ LastTaskError                the only task cannot be removed
    ├ HeadMasksReadOnlyError       the folder of head masks cannot be written
    ├ FeedbackOffError             this service takes no corrected answers
    ├ UnknownRequestError          a correction of a request that is not known, or another's
    ├ FeedbackFullError            the folder of corrected answers has no room
    ├ DeadlineExceededError        the time of the request was over before the answer
    ├ ClientDisconnectedError      the client went away; seen in logs and metrics only
    └ NotReadyError                loading, draining or failed to load   .retry_after_s

Whatever happens, the body is one envelope: {"error": {"type", "message", "param", "request_id"}}; under /v1
it has OpenAI's `type`, and ours as `code`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lalm import errors as lalm_errors
from service.inference import exceptions as inference_errors
from service.openai_schemas import OPENAI_PREFIX, openai_error
from service.schemas import ErrorBody, ErrorEnvelope

INTERNAL_MESSAGE = "internal error; the service's log has the reason under this request_id"
DEFAULT_RETRY_AFTER_S = 5.0

log = structlog.get_logger(__name__)


class ServiceError(Exception):
    """Root of the errors raised by the service; `param` names the part of the request at fault."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MalformedBodyError(ServiceError):
    """The body is not what its Content-Type says."""


class UnknownTaskError(ServiceError):
    """No task of this name; the message names those that exist."""

    def __init__(self, name: str, *, known: Sequence[str]) -> None:
        super().__init__(f"unknown task {name!r}; known tasks: {', '.join(known)}", param="task")


class UploadTooLargeError(ServiceError):
    """The body has more bytes than the limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the request body is larger than the limit of {limit_bytes} bytes", param="file")
        self.limit_bytes = limit_bytes


class UnknownModelError(ServiceError):
    """No model of this name; the message names those that exist."""

    def __init__(self, name: str, *, known: Sequence[str]) -> None:
        super().__init__(f"unknown model {name!r}; known are: {', '.join(known)}", param="model")


class UploadTimeoutError(ServiceError):
    """The body did not arrive within the time a client has for it."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the request body did not arrive within {limit_s:g} s", param="file")
        self.limit_s = limit_s


class UnsupportedBodyError(ServiceError):
    """The Content-Type is neither multipart/form-data nor audio."""


class InvalidParameterError(ServiceError):
    """A parameter, or the number of recordings, does not fit."""


class MissingKeyError(ServiceError):
    """No API key was sent, and one is needed."""


class InvalidKeyError(ServiceError):
    """The API key is not one of those that are known."""


class AdminKeyNeededError(ServiceError):
    """The API key, or the lack of one, does not allow this."""


class TooManyRequestsOfKeyError(ServiceError):
    """An API key has `limit` requests already; come back when one of them is answered."""

    retry_after_s = 1.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"this API key may have {limit} requests at a time, and has them")
        self.limit = limit


class InvalidHeadMaskError(ServiceError):
    """A head mask file was sent that cannot be used; the message says why."""


class LastTaskError(ServiceError):
    """The only task of the service cannot be removed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is the only task, and a service has at least one", param="task")


class HeadMasksReadOnlyError(ServiceError):
    """The folder of head masks cannot be written, so that a change would be lost at the next start."""


class FeedbackOffError(ServiceError):
    """The service takes no corrected answers."""

    def __init__(self) -> None:
        super().__init__("feedback is off: the service was started without AHAMASK_FEEDBACK_DIR")


class UnknownRequestError(ServiceError):
    """No request that this client may correct has the id; why is not told, lest ids can be tried out."""

    def __init__(self, max_age_s: float) -> None:
        message = (
            "no request of yours with this id can be corrected: it is the X-Feedback-Id of an answer, "
            f"known for {max_age_s:g} s at most"
        )
        super().__init__(message, param="request_id")


class FeedbackFullError(ServiceError):
    """The folder of corrected answers has as many bytes as it may have, or its disk is full."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the feedback folder is full: its limit is {limit_bytes} bytes")


class DeadlineExceededError(ServiceError):
    """The request was not answered within the time that it, or the service, allows."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no answer within {timeout_s:g} s, the time this request may take")
        self.timeout_s = timeout_s


class ClientDisconnectedError(ServiceError):
    """The client went away before it was answered."""


class NotReadyError(ServiceError):
    """The service does not take requests now; come back in `retry_after_s` seconds, perhaps elsewhere."""

    def __init__(self, message: str, *, retry_after_s: float = DEFAULT_RETRY_AFTER_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ErrorKind(NamedTuple):
    """How a class of errors looks on the wire."""

    status: int
    type: str


ERROR_TABLE: Mapping[type[Exception], ErrorKind] = {
    MalformedBodyError: ErrorKind(400, "malformed_body"),
    UnknownTaskError: ErrorKind(404, "unknown_task"),
    UnknownModelError: ErrorKind(404, "model_not_found"),
    UploadTimeoutError: ErrorKind(408, "upload_timeout"),
    UploadTooLargeError: ErrorKind(413, "upload_too_large"),
    UnsupportedBodyError: ErrorKind(415, "unsupported_body"),
    InvalidParameterError: ErrorKind(422, "invalid_parameter"),
    MissingKeyError: ErrorKind(401, "missing_api_key"),
    InvalidKeyError: ErrorKind(401, "invalid_api_key"),
    AdminKeyNeededError: ErrorKind(403, "admin_key_needed"),
    TooManyRequestsOfKeyError: ErrorKind(429, "too_many_requests"),
    InvalidHeadMaskError: ErrorKind(422, "invalid_head_mask"),
    LastTaskError: ErrorKind(409, "last_task"),
    HeadMasksReadOnlyError: ErrorKind(409, "head_masks_read_only"),
    FeedbackOffError: ErrorKind(404, "feedback_off"),
    UnknownRequestError: ErrorKind(404, "unknown_request"),
    FeedbackFullError: ErrorKind(507, "feedback_full"),
    ClientDisconnectedError: ErrorKind(499, "client_disconnected"),
    NotReadyError: ErrorKind(503, "not_ready"),
    DeadlineExceededError: ErrorKind(504, "deadline_exceeded"),
    ServiceError: ErrorKind(500, "internal_error"),
    lalm_errors.EmptyAudioError: ErrorKind(400, "empty_audio"),
    lalm_errors.UndecodableAudioError: ErrorKind(415, "undecodable_audio"),
    lalm_errors.UnsupportedAudioError: ErrorKind(415, "unsupported_audio"),
    lalm_errors.AudioTooLargeError: ErrorKind(413, "audio_too_large"),
    lalm_errors.AudioTooLongError: ErrorKind(413, "audio_too_long"),
    lalm_errors.AudioError: ErrorKind(400, "invalid_audio"),
    lalm_errors.HeadMaskError: ErrorKind(500, "internal_error"),
    lalm_errors.ModelError: ErrorKind(500, "internal_error"),
    lalm_errors.LalmError: ErrorKind(500, "internal_error"),
    inference_errors.PromptTooLongError: ErrorKind(413, "prompt_too_long"),
    inference_errors.QueueFullError: ErrorKind(429, "queue_full"),
    inference_errors.OutOfMemoryError: ErrorKind(503, "out_of_memory"),
    inference_errors.EngineStoppedError: ErrorKind(503, "engine_stopped"),
    inference_errors.SequenceFailedError: ErrorKind(500, "internal_error"),
    inference_errors.InferenceError: ErrorKind(500, "internal_error"),
}

# Errors that the framework finds before a route runs.
_FRAMEWORK_TYPES = {400: "malformed_body", 404: "not_found", 405: "method_not_allowed"}


def error_kind(error: Exception) -> ErrorKind:
    """Status and type of `error`: its own row of ERROR_TABLE, or that of its nearest base class."""
    for cls in type(error).__mro__:
        if cls in ERROR_TABLE:
            return ERROR_TABLE[cls]
    return ErrorKind(500, "internal_error")


def error_response(error: Exception, request_id: str, path: str) -> JSONResponse:
    """The answer to `error` on the route `path`; for a status of 500 its message stays inside."""
    kind = error_kind(error)
    if kind.status == 500:
        return _envelope(kind, INTERNAL_MESSAGE, None, request_id, path)
    headers = _retry_after(error) if kind.status in (429, 503) else {}
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _envelope(kind, str(error), getattr(error, "param", None), request_id, path, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Give `app` the envelope for every error of the table and of the framework.

    Exceptions outside the table are answered by service.middleware, which knows the request id.
    """
    for root in (ServiceError, lalm_errors.LalmError, inference_errors.InferenceError):
        app.add_exception_handler(root, _handle_house_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_framework_error)


async def _handle_house_error(request: Request, error: Exception) -> JSONResponse:
    if error_kind(error).status == 500:
        log.error("request failed", exc_info=error)
    return error_response(error, request.state.request_id, request.url.path)


async def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    message = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in problems)
    kind = ErrorKind(422, ERROR_TABLE[InvalidParameterError].type)
    return _envelope(kind, message, str(problems[0]["loc"][-1]), request.state.request_id, request.url.path)


async def _handle_framework_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = ErrorKind(error.status_code, _FRAMEWORK_TYPES.get(error.status_code, "http_error"))
    message = f"{error.detail}: {request.method} {request.url.path}"
    return _envelope(kind, message, None, request.state.request_id, request.url.path, error.headers or {})


def _retry_after(error: Exception) -> dict[str, str]:
    seconds = getattr(error, "retry_after_s", DEFAULT_RETRY_AFTER_S)
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _envelope(
    kind: ErrorKind,
    message: str,
    param: str | None,
    request_id: str,
    path: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body: BaseModel = ErrorEnvelope(
        error=ErrorBody(type=kind.type, message=message, param=param, request_id=request_id)
    )
    if path.startswith(OPENAI_PREFIX):
        body = openai_error(kind.status, kind.type, message, param, request_id)
    return JSONResponse(body.model_dump(), status_code=kind.status, headers=headers)
