"""From recordings to answers: decode, features, engine, parse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from lalm.audio import SAMPLE_RATE_HZ, AudioLimits, decode_audio
from lalm.errors import AudioError
from service.catalogue import CatalogueEntry
from service.errors import ClientDisconnectedError
from service.inference.request import EngineRequest, RowRequest
from service.runtime import Loaded, Runtime
from service.schemas import AudioInfo, HeadMaskInfo, TaskAnswer, TimingsMs, Usage
from service.uploads import PART

if TYPE_CHECKING:
    from lalm.family import AudioFeatures
    from lalm.head_mask import HeadMask


async def answer_unless_disconnected(
    request: Request,
    runtime: Runtime,
    entries: Sequence[CatalogueEntry],
    recordings: Sequence[bytes],
    *,
    with_scores: bool = False,
) -> list[TaskAnswer]:
    """`answer_tasks`, given up (its slot freed) as soon as the client goes away.

    The body of `request` has been read, so that the next event on its connection is the client's departure.

    Raises:
        ClientDisconnectedError: the client went away.
        QueueFullError: too many requests are between upload and answer.
    """
    with runtime.place():
        answering = asyncio.create_task(
            answer_tasks(runtime, entries, recordings, request.state.request_id, with_scores=with_scores)
        )
        leaving = asyncio.create_task(_wait_for_disconnect(request))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
            raise ClientDisconnectedError("the client went away before the answer")
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)


async def answer_tasks(
    runtime: Runtime,
    entries: Sequence[CatalogueEntry],
    recordings: Sequence[bytes],
    request_id: str,
    *,
    with_scores: bool = False,
) -> list[TaskAnswer]:
    """One answer an entry, in order; the audio is decoded and encoded once for all of them.

    with_scores: whether the result of a label task has the probabilities of its labels.

    Raises:
        AudioError: a recording cannot be used; its `param` says which.
        InferenceError: the engine refused or failed the request.
    """
    loaded = runtime.serving()
    start_s = time.perf_counter()
    features, duration_s = await _prepare(runtime, loaded, recordings)
    audio_s = time.perf_counter() - start_s
    runtime.metrics.observe_audio(duration_s=duration_s, decoding_s=audio_s)

    result = await loaded.engine.submit(
        EngineRequest(
            request_id=request_id,
            audio=features,
            rows=[
                RowRequest(
                    task=entry.task.name,
                    head_mask=entry.head_mask,
                    instruction=None,
                    max_new_tokens=entry.task.max_new_tokens,
                    output=entry.task.output,
                    with_scores=with_scores,
                )
                for entry in entries
            ],
        )
    )
    answers = []
    for entry, row in zip(entries, result.rows, strict=True):
        parsed = entry.task.parse(row.text)
        scores = {label: round(score, 6) for label, score in (row.scores or {}).items()}
        timings_ms = {**row.timings_ms, "audio": audio_s * 1e3}
        timings_ms["total"] = row.timings_ms["total"] + timings_ms["audio"]
        answers.append(
            TaskAnswer(
                id=request_id,
                task=entry.task.name,
                text=row.text,
                result={**parsed.result, "scores": scores} if scores else dict(parsed.result),
                audio=AudioInfo(duration_s=round(duration_s, 3), truncated=False),
                model=loaded.engine.family.identity.name,
                head_mask=head_mask_info(entry.head_mask),
                usage=Usage(audio_tokens=result.audio_tokens, output_tokens=len(row.token_ids)),
                timings_ms=TimingsMs(**{stage: round(ms, 3) for stage, ms in timings_ms.items()}),
                finish_reason=row.finish_reason,
                format_ok=parsed.format_ok,
            )
        )
    return answers


def head_mask_info(head_mask: HeadMask) -> HeadMaskInfo:
    """A head mask as the wire shows it."""
    return HeadMaskInfo(sha256=head_mask.sha256, active_heads=head_mask.num_active, num_heads=head_mask.total)


async def _prepare(
    runtime: Runtime, loaded: Loaded, recordings: Sequence[bytes]
) -> tuple[list[AudioFeatures], float]:
    """Features of each clip, and seconds of all recordings; the work is done by the audio workers."""
    family, limits, pool = loaded.engine.family, loaded.audio_limits, runtime.audio_pool
    loop = asyncio.get_running_loop()
    params = [PART] if len(recordings) == 1 else [f"{PART}[{index}]" for index in range(len(recordings))]
    waveforms = await asyncio.gather(
        *(
            loop.run_in_executor(pool, _decode, family.audio_input.channel, limits, recording, param)
            for recording, param in zip(recordings, params, strict=True)
        )
    )
    try:
        clips = family.audio_input.clips(waveforms, limits.max_duration_s)
    except AudioError as error:
        error.param = PART
        raise
    features = await asyncio.gather(*(loop.run_in_executor(pool, family.features, clip) for clip in clips))
    return features, sum(len(waveform) for waveform in waveforms) / SAMPLE_RATE_HZ


def _decode(channel: int | None, limits: AudioLimits, recording: bytes, param: str) -> NDArray[np.float32]:
    try:
        return decode_audio(recording, limits, channel=channel)
    except AudioError as error:
        error.param = param
        raise


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
