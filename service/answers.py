"""From recordings to answers: prepare, engine, parse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request

from service.auth import key_id_of
from service.catalogue import CatalogueEntry
from service.deadline import Deadline
from service.deltas import Deltas
from service.errors import ClientDisconnectedError
from service.inference.request import EngineRequest, RowRequest, RowResult
from service.preparation import Heard, Prepared, prepare
from service.runtime import Loaded, Runtime
from service.schemas import AudioInfo, HeadMaskInfo, Segment, TaskAnswer, TimingsMs, Usage
from service.submission import submit_in_batches
from service.tracing import Row, Timeline

if TYPE_CHECKING:
    from lalm.head_mask import HeadMask

STAGES = ("queue", "encoder", "prefill", "decode", "total")


@dataclass(frozen=True)
class Question:
    """A request that was read: which tasks to answer on which recordings, and until when.

    loaded: what was served when the request came; entries and recordings fit it.
    with_scores: whether the result of a label task has the probabilities of its labels.
    """

    request: Request
    runtime: Runtime
    loaded: Loaded
    entries: Sequence[CatalogueEntry]
    recordings: Sequence[bytes]
    deadline: Deadline
    with_scores: bool = False


async def answer_unless_disconnected(question: Question) -> list[TaskAnswer]:
    """One answer a task; as `stream_unless_disconnected`, and raises the same."""
    async with aclosing(stream_unless_disconnected(question, deltas=False)) as events:
        async for event in events:
            if not isinstance(event, str):
                return event
    raise AssertionError("a stream ends with its answers")


async def stream_unless_disconnected(
    question: Question, *, deltas: bool = True
) -> AsyncGenerator[str | list[TaskAnswer]]:
    """New text of the one answer as it is generated (with `deltas`), then one answer a task.

    Given up, its slots freed, as soon as the client goes away. The body of the request has been read, so that
    the next event on its connection is the client's departure.

    Raises:
        ClientDisconnectedError: the client went away.
        DeadlineExceededError: the time of the request is over.
        QueueFullError: too many requests are between upload and answer, or in the engine.
        AudioError: a recording cannot be used; its `param` says which.
        InferenceError: the engine refused or failed the request.
    """
    texts: asyncio.Queue[str | None] = asyncio.Queue()
    deadline = question.deadline
    with question.runtime.place():
        answering = asyncio.create_task(_answers(question, texts.put_nowait if deltas else None))
        answering.add_done_callback(lambda _: texts.put_nowait(None))
        leaving = asyncio.create_task(_wait_for_disconnect(question.request))
        waiting: set[asyncio.Task[Any]] = {leaving}
        try:
            while True:
                coming = asyncio.create_task(texts.get())
                waiting = {coming, leaving}
                await asyncio.wait(
                    waiting, timeout=deadline.remaining_s(), return_when=asyncio.FIRST_COMPLETED
                )
                if leaving.done():
                    raise ClientDisconnectedError("the client went away before the answer")
                if not coming.done():
                    raise deadline.error()
                if (text := coming.result()) is None:
                    break
                yield text
            yield answering.result()
        finally:
            for task in (answering, *waiting):
                task.cancel()
            await asyncio.gather(answering, *waiting, return_exceptions=True)


async def _answers(question: Question, on_text: Callable[[str], None] | None) -> list[TaskAnswer]:
    """One answer an entry, in order; the audio is decoded and encoded once for all of them."""
    runtime, loaded, entries = question.runtime, question.loaded, question.entries
    request_id: str = question.request.state.request_id
    tasks = [entry.task for entry in entries]
    start_s = time.perf_counter()
    timeline = question.request.state.timeline = Timeline(start_s)
    job = partial(prepare, loaded.engine.family, loaded.audio_limits, tasks, question.recordings)
    prepared = await asyncio.get_running_loop().run_in_executor(runtime.audio_pool, job)
    audio_s = time.perf_counter() - start_s
    timeline.submitted_s = start_s + audio_s
    runtime.metrics.observe_audio(duration_s=prepared.duration_s, decoding_s=audio_s)
    rows = await answer_prepared(
        loaded,
        entries,
        prepared,
        request_id,
        max_rows=runtime.settings.max_slots,
        with_scores=question.with_scores,
        on_text=on_text,
    )
    timeline.rows = [
        Row(task.name, row) for task, rows_of_task in zip(tasks, rows, strict=True) for row in rows_of_task
    ]
    if runtime.feedback is not None:
        own_id, key_id = question.request.state.own_request_id, key_id_of(question.request)
        runtime.feedback.remember(own_id, tasks, question.recordings, key_id)
    return [
        _answer(loaded, entry, prepared, heard, rows_of_entry, request_id, audio_s)
        for entry, heard, rows_of_entry in zip(entries, prepared.heard, rows, strict=True)
    ]


async def answer_prepared(
    loaded: Loaded,
    entries: Sequence[CatalogueEntry],
    prepared: Prepared,
    request_id: str,
    *,
    max_rows: int,
    patient: bool = False,
    with_scores: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> list[list[RowResult]]:
    """For each entry, what the engine says to each piece that its task hears.

    max_rows, patient: as for `submit_in_batches`.

    Raises:
        InferenceError: the engine refused or failed the request.
    """
    listeners = [
        [number for number, heard in enumerate(prepared.heard) if piece in heard.pieces]
        for piece in range(len(prepared.pieces))
    ]
    deltas = Deltas(loaded.engine.family.decode_tokens, on_text) if on_text else None
    requests = [
        EngineRequest(
            request_id=request_id,
            audio=piece.audio,
            rows=[_row(entries[number], with_scores=with_scores) for number in numbers],
            on_token=partial(deltas.on_token, index) if deltas else None,
        )
        for index, (piece, numbers) in enumerate(zip(prepared.pieces, listeners, strict=True))
    ]
    results = await submit_in_batches(loaded.engine, requests, max_rows=max_rows, patient=patient)
    return [
        [results[piece].rows[listeners[piece].index(number)] for piece in heard.pieces]
        for number, heard in enumerate(prepared.heard)
    ]


def joined_text(rows: Sequence[RowResult]) -> str:
    """The answers to the pieces of a recording, as one."""
    return " ".join(row.text for row in rows if row.text)


def head_mask_info(head_mask: HeadMask) -> HeadMaskInfo:
    """A head mask as the wire shows it."""
    return HeadMaskInfo(sha256=head_mask.sha256, active_heads=head_mask.num_active, num_heads=head_mask.total)


def _row(entry: CatalogueEntry, *, with_scores: bool) -> RowRequest:
    return RowRequest(
        task=entry.task.name,
        head_mask=entry.head_mask,
        instruction=None,
        max_new_tokens=entry.task.max_new_tokens,
        output=entry.task.output,
        with_scores=with_scores,
    )


def _answer(
    loaded: Loaded,
    entry: CatalogueEntry,
    prepared: Prepared,
    heard: Heard,
    rows: Sequence[RowResult],
    request_id: str,
    audio_s: float,
) -> TaskAnswer:
    text = joined_text(rows)
    parsed = entry.task.parse(text)
    # Labels are of one piece: what has labels is not split.
    scores = {label: round(score, 6) for row in rows for label, score in (row.scores or {}).items()}
    audio_tokens = sum(
        clip.num_audio_tokens for number in heard.pieces for clip in prepared.pieces[number].audio
    )
    return TaskAnswer(
        id=request_id,
        task=entry.task.name,
        text=text,
        result={**parsed.result, "scores": scores} if scores else dict(parsed.result),
        segments=_segments(prepared, heard, rows) if entry.task.has_segments else None,
        no_speech=not heard.pieces,
        audio=AudioInfo(duration_s=round(prepared.duration_s, 3), truncated=heard.truncated),
        model=loaded.engine.family.identity.name,
        head_mask=head_mask_info(entry.head_mask),
        usage=Usage(audio_tokens=audio_tokens, output_tokens=sum(len(row.token_ids) for row in rows)),
        timings_ms=_timings_ms(rows, audio_s),
        finish_reason="length" if any(row.finish_reason == "length" for row in rows) else "stop",
        format_ok=parsed.format_ok,
    )


def _segments(prepared: Prepared, heard: Heard, rows: Sequence[RowResult]) -> list[Segment]:
    pieces = [prepared.pieces[number] for number in heard.pieces]
    return [
        Segment(start=round(piece.start_s, 3), end=round(piece.end_s, 3), text=row.text)
        for piece, row in zip(pieces, rows, strict=True)
    ]


def _timings_ms(rows: Sequence[RowResult], audio_s: float) -> TimingsMs:
    """Those of the piece that was answered last, and of the audio before it."""
    latest = max((row.timings_ms for row in rows), key=lambda timings: timings["total"], default=None)
    timings_ms = {**dict.fromkeys(STAGES, 0.0), **(latest or {}), "audio": audio_s * 1e3}
    timings_ms["total"] += timings_ms["audio"]
    return TimingsMs(**{stage: round(ms, 3) for stage, ms in timings_ms.items()})


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
