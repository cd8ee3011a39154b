"""Answers to recordings on disk: the way of a request from decoding to parsing, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lalm.errors import LalmError
from lalm.task import ParsedAnswer
from service.answers import answer_prepared, joined_text
from service.audio_pool import audio_pool
from service.catalogue import CatalogueEntry
from service.inference.exceptions import InferenceError
from service.preparation import prepare
from service.runtime import Loaded


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
    audio_workers: int,
) -> int:
    """Answer `entry`'s task on every group of `num_audios` files; returns how many groups failed.

    loaded: with its engine running.
    on_answer: called with each answer, in the order of the groups.
    max_in_flight: groups decoded or in the engine at a time, and rows of one of them.
    audio_workers: threads that decode.
    """
    places, pool = asyncio.Semaphore(max_in_flight), audio_pool(audio_workers)
    answers = [
        asyncio.create_task(_answer(loaded, entry, group, places, max_in_flight, pool)) for group in groups
    ]
    num_failed = 0
    try:
        for answer in answers:
            on_answer(await answer)
            num_failed += answer.result().error is not None
    finally:
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        pool.shutdown(wait=False, cancel_futures=True)
    return num_failed


async def _answer(
    loaded: Loaded,
    entry: CatalogueEntry,
    files: Sequence[Path],
    places: asyncio.Semaphore,
    max_rows: int,
    pool: Executor,
) -> FileAnswer:
    async with places:
        try:
            job = partial(prepare, loaded.engine.family, loaded.audio_limits, [entry.task], files)
            prepared = await asyncio.get_running_loop().run_in_executor(pool, job)
            name = " ".join(str(file) for file in files)
            (rows,) = await answer_prepared(loaded, [entry], prepared, name, max_rows=max_rows, patient=True)
        except (LalmError, InferenceError) as error:
            return FileAnswer(files, error=error)
    text = joined_text(rows)
    return FileAnswer(files, text, entry.task.parse(text))
