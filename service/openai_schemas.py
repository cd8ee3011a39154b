"""The types of OpenAI's audio API, as far as they are answered here.

Source: https://platform.openai.com/docs/api-reference/audio
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

OPENAI_PREFIX = "/v1/"

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIErrorBody(BaseModel):
    """OpenAI's error, and the id by which the service's log has it."""

    message: str
    type: str = Field(description="OpenAI's kind of error.", examples=["invalid_request_error"])
    param: str | None = Field(description="The part of the request at fault, or null.")
    code: str = Field(
        description="The `type` that the error has on the other routes.", examples=["model_not_found"]
    )
    request_id: str


class OpenAIErrorEnvelope(BaseModel):
    """The body of every answer under /v1 that is not a success."""

    error: OpenAIErrorBody


def openai_error(
    status: int, code: str, message: str, param: str | None, request_id: str
) -> OpenAIErrorEnvelope:
    """The error `code` of the service's own envelope, in OpenAI's form."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return OpenAIErrorEnvelope(
        error=OpenAIErrorBody(message=message, type=kind, param=param, code=code, request_id=request_id)
    )


class Model(BaseModel):
    """A name that `model` may have."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this service started, in seconds of Unix time.")
    owned_by: str = "ahamask"


class ModelList(BaseModel):
    """Every name that `model` may have."""

    object: Literal["list"] = "list"
    data: list[Model]


class UsageTokens(BaseModel):
    """Usage in tokens."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int
    output_tokens: int
    total_tokens: int


class UsageDuration(BaseModel):
    """Usage in seconds of audio."""

    type: Literal["duration"] = "duration"
    seconds: float


class Transcript(BaseModel):
    """An answer of response_format `json`."""

    text: str
    usage: UsageTokens


class TranscriptSegment(BaseModel):
    """A stretch of the recording; what is not known of it here (probabilities, tokens) is left out."""

    id: int
    start: float
    end: float
    text: str


class VerboseTranscript(BaseModel):
    """An answer of response_format `verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="What the request said; the model does not tell.")
    duration: float
    text: str
    segments: list[TranscriptSegment]
    usage: UsageDuration


class TextDelta(BaseModel):
    """An event of a streamed answer: new text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(BaseModel):
    """The last event of a streamed answer."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: UsageTokens
