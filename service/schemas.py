"""The types of the wire: what the service answers, as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from lalm.task import LongAudio, OutputSpec

_SHA256 = "4c0f4e6f2f1c0d0e9a3f5b1c7d8e2a6b4c0f4e6f2f1c0d0e9a3f5b1c7d8e2a6b"

EXAMPLE_ANSWER: JsonDict = {
    "id": "3f1c9a52b0d84e7f9a6d2c41e8b75f03",
    "task": "asr",
    "text": "turn on the light",
    "result": {"text": "turn on the light"},
    "segments": [{"start": 0.0, "end": 1.84, "text": "turn on the light"}],
    "no_speech": False,
    "audio": {"duration_s": 1.84, "truncated": False},
    "model": "tiny-lalm",
    "head_mask": {"sha256": _SHA256, "active_heads": 81, "num_heads": 128},
    "usage": {"audio_tokens": 46, "output_tokens": 8},
    "timings_ms": {
        "audio": 4.1,
        "queue": 0.2,
        "encoder": 9.8,
        "prefill": 6.3,
        "decode": 31.0,
        "total": 51.9,
    },
    "finish_reason": "stop",
    "format_ok": True,
}


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str = Field(description="Kind of error, made for programs.", examples=["unknown_task"])
    message: str = Field(description="What was wrong and what is allowed, made for people.")
    param: str | None = Field(description="The part of the request at fault, or null.", examples=["task"])
    request_id: str = Field(description="The X-Request-Id of this request; the service's log has it too.")


class ErrorEnvelope(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


class AudioInfo(BaseModel):
    """The audio that was heard."""

    duration_s: float = Field(description="Seconds of audio; the sum over the recordings of a pair task.")
    truncated: bool = Field(
        description="Whether only the beginning was heard, which is so for long audio of a first-window task."
    )


class Segment(BaseModel):
    """A stretch of the recording, and what was said in it."""

    start: float = Field(description="Seconds from the start of the recording.")
    end: float = Field(description="Seconds from the start of the recording.")
    text: str


class HeadMaskInfo(BaseModel):
    """The head mask that selected the task."""

    sha256: str = Field(description="Digest of shape and bits.")
    active_heads: int = Field(description="Heads kept.")
    num_heads: int = Field(description="Heads of the whole decoder (layers x heads a layer).")


class Usage(BaseModel):
    """What the request cost."""

    audio_tokens: int = Field(description="Positions of the prompt that carry audio.")
    output_tokens: int = Field(description="Tokens generated, the end token not counted.")


class TimingsMs(BaseModel):
    """Milliseconds in each stage."""

    audio: float = Field(description="Decoding the upload and computing its features, wait included.")
    queue: float = Field(description="Waiting for a slot.")
    encoder: float = Field(description="Audio encoder; one pass serves all tasks of the request.")
    prefill: float = Field(description="First pass of the decoder, over the audio.")
    decode: float = Field(description="Token by token after that.")
    total: float = Field(description="From the last byte of the upload to the answer.")


class TaskAnswer(BaseModel):
    """The answer of one task."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ANSWER]})

    id: str = Field(description="The X-Request-Id of the request.")
    task: str
    text: str = Field(description="What the model said, unparsed.")
    result: dict[str, str | dict[str, float] | None] = Field(
        description="`text` parsed: {text}, {label} or the task's fields; null where it could not be read. "
        "With `?scores=true` a label task has `scores` too: the probability of each label."
    )
    segments: list[Segment] | None = Field(
        default=None,
        exclude_if=lambda segments: segments is None,
        description="Tasks with text only: the pieces a long recording was cut into at pauses; else one.",
    )
    no_speech: bool = Field(
        default=False,
        description="Whether there was nothing to hear: the model was not asked, and `text` is empty.",
    )
    audio: AudioInfo
    model: str
    head_mask: HeadMaskInfo
    usage: Usage
    timings_ms: TimingsMs
    finish_reason: Literal["stop", "length"] = Field(
        description="`stop`: the model ended; `length`: cut at the task's max_new_tokens."
    )
    format_ok: bool = Field(description="Whether `text` had the form that the task asks for.")


class TaskDelta(BaseModel):
    """An event `delta` of a streamed answer; the last event is `done`, with a TaskAnswer."""

    delta: str = Field(description="New text of the answer.")


class TaskAnswers(BaseModel):
    """The answers of several tasks to one upload."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": EXAMPLE_ANSWER["id"], "results": {"asr": EXAMPLE_ANSWER}}]}
    )

    id: str = Field(description="The X-Request-Id of the request.")
    results: dict[str, TaskAnswer] = Field(
        description="By task, in the order asked: what POST /tasks/{task} would have answered."
    )


class LongAudioInfo(BaseModel):
    """What becomes of a recording that is longer than the model hears at once."""

    policy: LongAudio = Field(
        description="`split` at pauses, hear the `first-window` only, or `refuse` with 413."
    )
    segment_s: float = Field(description="The longest stretch that the model hears at once, in seconds.")
    max_audio_s: float = Field(description="The longest recording accepted, in seconds.")


class TaskInfo(BaseModel):
    """One task that the service answers."""

    name: str
    title: str
    output: OutputSpec = Field(description="Form of the answer: text, label (one of labels), fields or json.")
    num_audios: int = Field(description="Recordings a request takes: 1, or 2 for pair tasks.")
    max_new_tokens: int
    long_audio: LongAudioInfo
    needs_speech: bool = Field(description="Whether a recording without speech is answered with nothing.")
    head_mask: HeadMaskInfo
    evaluation: dict[str, Any] = Field(description="What was measured when the head mask was made.")


class TaskList(BaseModel):
    """Every task that the service answers."""

    model: str
    tasks: list[TaskInfo]


class Health(BaseModel):
    """State of the service."""

    status: Literal["ok", "ready"]


class FeedbackRequest(BaseModel):
    """What the answer to a recent request should have been."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(
        min_length=1,
        max_length=64,
        description="The X-Feedback-Id of the answer, which is its `id` too unless you sent an X-Request-Id.",
    )
    text: str = Field(
        min_length=1, max_length=16_384, description="The right answer, in the form of the task's answers."
    )
    task: str | None = Field(
        default=None, description="Which of the request's tasks; needed if there were several."
    )


class FeedbackReceipt(BaseModel):
    """A correction that was written."""

    request_id: str
    task: str
    text: str = Field(description="As it was written, without space around it.")
    audio_kept: bool = Field(
        description="Whether it was written with its audio, as an example to train on. False where the "
        "service may not keep audio, and for recordings longer than the model hears at once."
    )
