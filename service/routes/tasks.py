"""The tasks: what there is, and answers to recordings."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from service.answers import Question, answer_unless_disconnected, head_mask_info, stream_unless_disconnected
from service.catalogue import Catalogue, CatalogueEntry
from service.deadline import Deadline, deadline_of
from service.errors import InvalidParameterError
from service.event_stream import DOCUMENTED, EventStream, event, started
from service.preparation import limit_s, segment_s
from service.runtime import Loaded, Runtime
from service.schemas import (
    ErrorEnvelope,
    LongAudioInfo,
    TaskAnswer,
    TaskAnswers,
    TaskDelta,
    TaskInfo,
    TaskList,
)
from service.uploads import read_recordings

router = APIRouter(tags=["tasks"])

_BINARY = {"type": "string", "format": "binary"}
_FILES = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {
            "oneOf": [_BINARY, {"type": "array", "items": _BINARY, "minItems": 2, "maxItems": 2}],
            "description": "The recording (WAV, FLAC, OGG, MP3, M4A, WebM, MP4); two `file` for pair tasks.",
        }
    },
}
_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A form with the recording as `file`, or the recording itself as the body.",
        "content": {
            "multipart/form-data": {"schema": _FILES},
            **{name: {"schema": _BINARY} for name in ("audio/*", "video/*", "application/octet-stream")},
        },
    }
}


def _errors(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    return {
        int(status.removeprefix("e")): {"model": ErrorEnvelope, "description": description}
        for status, description in descriptions.items()
    }


_NOT_READY = _errors(e503="Loading or draining; come back after Retry-After seconds.")
_ANSWER_ERRORS = _NOT_READY | _errors(
    e400="The body is malformed, or holds no audio.",
    e404="No such task; the message names the known ones.",
    e408="The body took too long to arrive; the message names the limit.",
    e413="Too many bytes or seconds; the message names the limit.",
    e415="Not audio that can be decoded.",
    e422="A parameter, or the number of recordings, does not fit.",
    e429="Too many requests are waiting; come back after Retry-After seconds.",
    e500="Internal error; the log has the reason under the request id.",
    e504="No answer within X-Request-Timeout seconds, or the service's own limit.",
)
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; or, streamed, events `delta` with new text, then `done` with the answer.",
        "content": DOCUMENTED,
    }
}


_Scores = Annotated[
    bool, Query(description="Whether `result` of a label task has `scores`, the probability of each label.")
]


@router.get("/tasks", summary="List the tasks", responses=_NOT_READY)
async def list_tasks(request: Request) -> TaskList:
    """Every task this service answers, with the form of its answers and its head mask."""
    loaded = _runtime(request).serving()
    return TaskList(
        model=loaded.engine.family.identity.name,
        tasks=[_task_info(loaded, entry) for entry in loaded.catalogue],
    )


@router.get(
    "/tasks/{task}",
    summary="Describe a task",
    responses=_NOT_READY
    | _errors(e404="No such task; the message names the known ones.", e422="A parameter does not fit."),
)
async def describe_task(request: Request, task: str) -> TaskInfo:
    """One task, with the form of its answers and its head mask."""
    loaded = _runtime(request).serving()
    return _task_info(loaded, loaded.catalogue[task])


@router.post(
    "/tasks/{task}",
    summary="Answer a task",
    response_model=TaskAnswer,
    responses=_STREAM | _ANSWER_ERRORS,
    openapi_extra=_REQUEST_BODY,
)
async def answer_task(
    request: Request,
    task: str,
    deadline: Annotated[Deadline, Depends(deadline_of)],
    stream: Annotated[
        bool, Query(description="Answer with server-sent events; so does Accept: text/event-stream.")
    ] = False,
    scores: _Scores = False,
) -> TaskAnswer | EventStream:
    """Answer one task on a recording.

    curl -F file=@recording.wav http://localhost:8080/tasks/asr
    curl -H 'Content-Type: audio/wav' --data-binary @recording.wav http://localhost:8080/tasks/asr
    curl -N -F file=@recording.wav 'http://localhost:8080/tasks/asr?stream=true'
    """
    question = await _read(request, [task], deadline, with_scores=scores)
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        return await started(_events(question))
    (answer,) = await answer_unless_disconnected(question)
    return answer


async def _events(question: Question) -> AsyncGenerator[bytes]:
    """`delta` for new text, then `done` with the whole answer."""
    async with aclosing(stream_unless_disconnected(question)) as found:
        async for each in found:
            if isinstance(each, str):
                yield event(TaskDelta(delta=each), "delta")
            else:
                yield event(each[0], "done")


@router.post("/tasks", summary="Answer several tasks", responses=_ANSWER_ERRORS, openapi_extra=_REQUEST_BODY)
async def answer_tasks(
    request: Request,
    tasks: Annotated[
        list[str], Query(description="Task names separated by commas, or repeated.", examples=["asr,gr"])
    ],
    deadline: Annotated[Deadline, Depends(deadline_of)],
    scores: _Scores = False,
) -> TaskAnswers:
    """Answer several tasks on one recording, which is uploaded, decoded and encoded once.

    curl -F file=@recording.wav 'http://localhost:8080/tasks?tasks=asr,gr'
    """
    names = [name.strip() for item in tasks for name in item.split(",")]
    answers = await answer_unless_disconnected(await _read(request, names, deadline, with_scores=scores))
    return TaskAnswers(id=request.state.request_id, results={answer.task: answer for answer in answers})


async def _read(request: Request, names: list[str], deadline: Deadline, *, with_scores: bool) -> Question:
    runtime = _runtime(request)
    loaded = runtime.serving()
    catalogue = loaded.catalogue
    request.state.tasks = sorted({name for name in names if name in catalogue})
    entries = _entries(catalogue, names)
    with runtime.upload():
        async with deadline.guard():
            recordings = await read_recordings(
                request, num_audios=entries[0].task.num_audios, max_bytes=runtime.settings.max_upload_bytes
            )
    return Question(request, runtime, loaded, entries, recordings, deadline, with_scores)


def _entries(catalogue: Catalogue, names: list[str]) -> list[CatalogueEntry]:
    entries = [catalogue[name] for name in names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidParameterError(f"task {twice!r} is asked for twice", param="tasks")
    if len({entry.task.num_audios for entry in entries}) > 1:
        counts = ", ".join(f"{entry.task.name}: {entry.task.num_audios}" for entry in entries)
        raise InvalidParameterError(f"the numbers of recordings differ ({counts})", param="tasks")
    return entries


def _task_info(loaded: Loaded, entry: CatalogueEntry) -> TaskInfo:
    task, window_s = entry.task, loaded.engine.family.max_audio_s
    return TaskInfo(
        name=task.name,
        title=task.title,
        output=task.output,
        num_audios=task.num_audios,
        max_new_tokens=task.max_new_tokens,
        long_audio=LongAudioInfo(
            policy=task.long_audio_policy,
            segment_s=segment_s(task, window_s),
            max_audio_s=limit_s(task, loaded.audio_limits, window_s),
        ),
        needs_speech=task.needs_speech,
        head_mask=head_mask_info(entry.head_mask),
        evaluation=entry.evaluation,
    )


def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime
