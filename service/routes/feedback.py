"""Corrected answers, from those who know better."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from service.auth import key_id_of
from service.errors import FeedbackOffError, InvalidParameterError, MalformedBodyError
from service.runtime import Runtime
from service.schemas import ErrorEnvelope, FeedbackReceipt, FeedbackRequest
from service.uploads import read_body

router = APIRouter(tags=["feedback"])

MAX_FEEDBACK_BYTES = 64 * 1024

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": FeedbackRequest.model_json_schema()}},
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": description}
    for status, description in {
        400: "Not JSON.",
        404: "Feedback is off, or no recent request of this client has the id.",
        408: "The body took too long to arrive.",
        413: "The body is larger than a correction may be; the message names the limit.",
        422: "A field does not fit, or `text` is not an answer of the task.",
        429: "This API key has as many requests as it may have at a time.",
        503: "Loading or draining; come back after Retry-After seconds.",
        507: "The feedback folder is full.",
    }.items()
}


@router.post("/feedback", summary="Correct an answer", openapi_extra=_BODY, responses=_ERRORS)
async def give_feedback(request: Request) -> FeedbackReceipt:
    """Write down what the answer to a recent request should have been, for later training.

    curl --json '{"request_id": "3f1c9a52b0d84e7f9a6d2c41e8b75f03", "text": "male"}' localhost:8080/feedback
    """
    runtime: Runtime = request.app.state.runtime
    if runtime.feedback is None:
        raise FeedbackOffError()
    loaded = runtime.serving()
    runtime.accept()
    sent = _parse(await read_body(request, MAX_FEEDBACK_BYTES))
    correction, has_audio = await runtime.feedback.correct(
        sent.request_id,
        sent.task,
        sent.text,
        key_id=key_id_of(request),
        family=loaded.engine.family,
        limits=loaded.audio_limits,
    )
    return FeedbackReceipt(
        request_id=correction.request_id, task=correction.task, text=correction.text, audio_kept=has_audio
    )


def _parse(body: bytes) -> FeedbackRequest:
    try:
        return FeedbackRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise MalformedBodyError(f"the body is not JSON: {problem['msg']}") from error
        param = ".".join(map(str, problem["loc"])) or None
        raise InvalidParameterError(f"{param or 'body'}: {problem['msg']}", param=param) from error
