"""Answers to recordings on disk: the way of a request from decoding to parsing, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lalm.audio import AudioLimits, decode_audio
from lalm.errors import LalmError
from lalm.task import ParsedAnswer
from service.catalogue import CatalogueEntry
from service.inference.exceptions import InferenceError
from service.inference.request import EngineRequest, RowRequest
from service.runtime import Loaded

if TYPE_CHECKING:
    from lalm.family import AudioFeatures, ModelFamily


@dataclass(frozen=True)
class FileAnswer:
    """What became of the recordings of one question; `error` is set and `text` empty when it failed."""

    files: Sequence[Path]
    text: str = ""
    parsed: ParsedAnswer | None = None
    error: LalmError | InferenceError | None = None


async def answer_files(
    loaded: Loaded,
    entry: CatalogueEntry,
    groups: Sequence[Sequence[Path]],
    on_answer: Callable[[FileAnswer], None],
    *,
    max_in_flight: int,
) -> int:
    """Answer `entry`'s task on every group of `num_audios` files; returns how many groups failed.

    loaded: with its engine running.
    on_answer: called with each answer, in the order of the groups.
    max_in_flight: groups decoded or in the engine at a time; no more than it takes without refusing.
    """
    places = asyncio.Semaphore(max_in_flight)
    answers = [asyncio.create_task(_answer(loaded, entry, group, places)) for group in groups]
    num_failed = 0
    try:
        for answer in answers:
            on_answer(await answer)
            num_failed += answer.result().error is not None
    finally:
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
    return num_failed


async def _answer(
    loaded: Loaded, entry: CatalogueEntry, files: Sequence[Path], places: asyncio.Semaphore
) -> FileAnswer:
    task = entry.task
    row = RowRequest(task.name, entry.head_mask, None, task.max_new_tokens, task.output)
    async with places:
        try:
            family, limits = loaded.engine.family, loaded.audio_limits
            audio = await asyncio.to_thread(_features, family, limits, files)
            request = EngineRequest(" ".join(str(file) for file in files), audio, [row])
            text = (await loaded.engine.submit(request)).rows[0].text
        except (LalmError, InferenceError) as error:
            return FileAnswer(files, error=error)
    return FileAnswer(files, text, entry.task.parse(text))


def _features(family: ModelFamily, limits: AudioLimits, files: Sequence[Path]) -> list[AudioFeatures]:
    audio_input = family.audio_input
    waveforms = [decode_audio(file, limits, channel=audio_input.channel) for file in files]
    return [family.features(clip) for clip in audio_input.clips(waveforms, limits.max_duration_s)]
