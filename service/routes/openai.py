"""OpenAI's audio API, so that its clients work here: /v1/audio/transcriptions, /translations, /v1/models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response

from lalm.task import OutputKind
from service.answers import Question, answer_unless_disconnected, stream_unless_disconnected
from service.catalogue import CatalogueEntry
from service.deadline import Deadline, deadline_of
from service.errors import InvalidParameterError, UnknownModelError
from service.event_stream import DOCUMENTED, event, started
from service.openai_form import AudioForm, audio_form, form_schema
from service.openai_formats import done, formatted
from service.openai_schemas import (
    Model,
    ModelList,
    OpenAIErrorEnvelope,
    TextDelta,
    Transcript,
    VerboseTranscript,
)
from service.runtime import Loaded, Runtime
from service.uploads import read_form

router = APIRouter(prefix="/v1", tags=["OpenAI"])

# The task that answers when `model` names the model and not a task.
_TASKS: dict[Literal["transcribe", "translate"], str] = {"transcribe": "asr", "translate": "s2tt"}

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIErrorEnvelope, "description": description}
    for status, description in {
        400: "The body is malformed, or holds no audio.",
        404: "No such model; the message names the known ones.",
        408: "The body took too long to arrive.",
        413: "Too many bytes or seconds; the message names the limit.",
        415: "Not a form, or not audio that can be decoded.",
        422: "A field does not fit.",
        429: "Too many requests are waiting; come back after Retry-After seconds.",
        500: "Internal error; the log has the reason under the request id.",
        503: "Loading or draining; come back after Retry-After seconds.",
        504: "No answer within X-Request-Timeout seconds, or the service's own limit.",
    }.items()
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Transcript | VerboseTranscript,
        "description": "In the form that response_format asks for.",
        "content": {
            **{
                name: {"schema": {"type": "string"}}
                for name in ("text/plain", "text/vtt", "application/x-subrip")
            },
            **DOCUMENTED,
        },
    }
}
_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}}


@router.post(
    "/audio/transcriptions",
    summary="Transcribe",
    response_class=Response,
    responses=_ANSWERS | _ERRORS,
    openapi_extra=_FORM,
)
async def transcribe(request: Request, deadline: Annotated[Deadline, Depends(deadline_of)]) -> Response:
    """Transcribe a recording.

    curl -F file=@recording.wav -F model=asr http://localhost:8080/v1/audio/transcriptions
    """
    return await _respond(request, deadline, "transcribe")


@router.post(
    "/audio/translations",
    summary="Translate",
    response_class=Response,
    responses=_ANSWERS | _ERRORS,
    openapi_extra=_FORM,
)
async def translate(request: Request, deadline: Annotated[Deadline, Depends(deadline_of)]) -> Response:
    """Translate a recording, into the language that the head mask was made for.

    curl -F file=@recording.wav -F model=s2tt http://localhost:8080/v1/audio/translations
    """
    return await _respond(request, deadline, "translate")


@router.get("/models", summary="List the models", responses={503: _ERRORS[503]})
async def list_models(request: Request) -> ModelList:
    """The model that is loaded, and every task that answers one recording with text."""
    runtime: Runtime = request.app.state.runtime
    return ModelList(data=_models(runtime))


@router.get(
    "/models/{model}",
    summary="Describe a model",
    responses={status: _ERRORS[status] for status in (404, 422, 503)},
)
async def describe_model(request: Request, model: str) -> Model:
    """One of the names that `GET /v1/models` lists."""
    runtime: Runtime = request.app.state.runtime
    models = {each.id: each for each in _models(runtime)}
    if model not in models:
        raise UnknownModelError(model, known=list(models))
    return models[model]


async def _respond(
    request: Request, deadline: Deadline, kind: Literal["transcribe", "translate"]
) -> Response:
    runtime: Runtime = request.app.state.runtime
    loaded = runtime.serving()
    with runtime.upload():
        async with deadline.guard():
            form = await read_form(request, max_bytes=runtime.settings.max_upload_bytes)
    fields = audio_form(form)
    entry = _entry(loaded, fields, kind)
    request.state.tasks = [entry.task.name]
    question = Question(request, runtime, loaded, [entry], [form.file], deadline)
    if fields.stream:
        return await started(_events(question))
    (answer,) = await answer_unless_disconnected(question)
    return formatted(answer, fields.response_format, kind, fields.language)


async def _events(question: Question) -> AsyncGenerator[bytes]:
    async with aclosing(stream_unless_disconnected(question)) as found:
        async for each in found:
            yield event(TextDelta(delta=each) if isinstance(each, str) else done(each[0]))


def _entry(loaded: Loaded, fields: AudioForm, kind: Literal["transcribe", "translate"]) -> CatalogueEntry:
    """The task that `model` means.

    Raises:
        UnknownModelError: none; it names those there are.
        InvalidParameterError: a task whose answer is not text, or that takes two recordings.
    """
    name = _TASKS[kind] if fields.model == loaded.engine.family.identity.name else fields.model
    usable = _text_tasks(loaded)
    if name not in loaded.catalogue:
        raise UnknownModelError(fields.model, known=[entry.task.name for entry in usable])
    entry = loaded.catalogue[name]
    if entry not in usable:
        names = ", ".join(each.task.name for each in usable)
        raise InvalidParameterError(
            f"task {name!r} does not answer one recording with text; those that do: {names}", param="model"
        )
    return entry


def _text_tasks(loaded: Loaded) -> list[CatalogueEntry]:
    return [
        entry
        for entry in loaded.catalogue
        if entry.task.output.kind is OutputKind.TEXT and entry.task.num_audios == 1
    ]


def _models(runtime: Runtime) -> list[Model]:
    loaded = runtime.serving()
    names = [loaded.engine.family.identity.name, *(entry.task.name for entry in _text_tasks(loaded))]
    return [Model(id=name, created=runtime.created_s) for name in names]
