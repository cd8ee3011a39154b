"""Corrected answers: which requests may still be corrected, and how a correction comes into the folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from lalm.audio import AudioLimits, decode_audio
from lalm.errors import AudioError
from lalm.task import TaskSpec
from service.errors import InvalidParameterError, UnknownRequestError
from service.feedback_folder import Correction, FeedbackFolder
from service.preparation import segment_s
from service.settings import Settings

if TYPE_CHECKING:
    from lalm.family import ModelFamily

# What an answered request costs in memory beside its recordings, roughly.
REQUEST_BYTES = 1024
EXPIRE_EVERY_S = 60.0
CLEAN_FOLDER_EVERY_S = 3600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RecentRequest:
    """An answered request: its tasks by name, who asked (the id of an API key), and its uploads if kept."""

    tasks: Mapping[str, TaskSpec]
    key_id: str | None
    recordings: tuple[bytes, ...] = ()

    @property
    def num_bytes(self) -> int:
        return REQUEST_BYTES + sum(map(len, self.recordings))


class RecentRequests:
    """The latest answered requests by the service's own ids, in memory; for the event loop's thread.

    max_bytes: of all of them; the oldest give way. max_age_s: how long each stays, in seconds of `now`.
    """

    def __init__(self, max_bytes: int, max_age_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._now = now
        self._kept: dict[str, tuple[float, RecentRequest]] = {}  # the oldest first
        self.num_bytes = 0

    def keep(self, request_id: str, request: RecentRequest) -> None:
        """Remember an answered request; one that is too large is not kept, and pushes nothing out."""
        self.expire()
        if request.num_bytes > self._max_bytes:
            return
        while self.num_bytes + request.num_bytes > self._max_bytes:
            self._forget_oldest()
        self._kept[request_id] = (self._now(), request)
        self.num_bytes += request.num_bytes

    def find(self, request_id: str, key_id: str | None) -> RecentRequest:
        """The request of this id, if this API key made it.

        Raises:
            UnknownRequestError: none, not any more, or another's; which of them is not told.
        """
        self.expire()
        _, request = self._kept.get(request_id, (0.0, None))
        if request is None or request.key_id != key_id:
            raise UnknownRequestError(self._max_age_s)
        return request

    def expire(self) -> None:
        """Forget what is too old."""
        oldest_s = self._now() - self._max_age_s
        while self._kept and next(iter(self._kept.values()))[0] < oldest_s:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, request = self._kept.pop(next(iter(self._kept)))
        self.num_bytes -= request.num_bytes


class Feedback:
    """The corrected answers of one service; for the event loop's thread.

    Raises:
        SettingsError: the folder cannot be made or written.
    """

    def __init__(self, settings: Settings, audio_pool: Executor) -> None:
        assert settings.feedback_dir is not None
        self._with_audio = settings.feedback_audio
        self._audio_pool = audio_pool
        self._folder = FeedbackFolder(
            settings.feedback_dir,
            retention_days=settings.feedback_retention_days,
            max_bytes=settings.feedback_max_bytes,
        )
        self._recent = RecentRequests(settings.feedback_recent_bytes, settings.feedback_recent_s)
        self._writing = asyncio.Lock()

    def remember(
        self, request_id: str, tasks: Sequence[TaskSpec], recordings: Sequence[bytes], key_id: str | None
    ) -> None:
        """A request was answered, and may be corrected for a while; request_id: the service's own."""
        kept = tuple(recordings) if self._with_audio else ()
        self._recent.keep(request_id, RecentRequest({task.name: task for task in tasks}, key_id, kept))

    async def correct(
        self,
        request_id: str,
        task_name: str | None,
        text: str,
        *,
        key_id: str | None,
        family: ModelFamily,
        limits: AudioLimits,
    ) -> tuple[Correction, bool]:
        """Write a corrected answer; returns it, and whether its audio was written too.

        Raises:
            UnknownRequestError: no such request, not any more, or another's.
            InvalidParameterError: not a task of the request, or not an answer of that task.
            FeedbackFullError: the folder has no room for it.
        """
        request = self._recent.find(request_id, key_id)
        task = _task(request, task_name)
        correction = Correction(request_id, task.name, _checked(task, text))
        job = partial(_waveforms, family, limits, task, request.recordings)
        waveforms = await asyncio.get_running_loop().run_in_executor(self._audio_pool, job)
        async with self._writing:
            await asyncio.to_thread(self._folder.add, correction, waveforms)
        log.info("feedback", task=task.name, corrected=request_id, with_audio=bool(waveforms))
        return correction, bool(waveforms)

    async def forget_regularly(self) -> None:
        """Keep the limits of time while nobody asks, until cancelled."""
        cleaned_s = -CLEAN_FOLDER_EVERY_S
        while True:
            self._recent.expire()
            if time.monotonic() >= cleaned_s + CLEAN_FOLDER_EVERY_S:
                cleaned_s = time.monotonic()
                try:
                    await asyncio.to_thread(self._folder.remove_expired)
                except (OSError, ValueError) as error:
                    log.error("old feedback not removed", reason=str(error))
            await asyncio.sleep(EXPIRE_EVERY_S)


def _task(request: RecentRequest, name: str | None) -> TaskSpec:
    if name is None and len(request.tasks) == 1:
        (task,) = request.tasks.values()
        return task
    if name is None or name not in request.tasks:
        message = f"the request was answered for {', '.join(request.tasks)}: name one of them, not {name!r}"
        raise InvalidParameterError(message, param="task")
    return request.tasks[name]


def _checked(task: TaskSpec, text: str) -> str:
    text = text.strip()
    if not text:
        raise InvalidParameterError("a corrected answer is not empty", param="text")
    if not task.parse(text).format_ok:
        raise InvalidParameterError(f"text {text!r} is not an answer of task {task.name!r}", param="text")
    return text


def _waveforms(
    family: ModelFamily, limits: AudioLimits, task: TaskSpec, recordings: Sequence[bytes]
) -> list[NDArray[np.float32]]:
    """The recordings as the model heard them, each float32 [num_samples], 16 kHz mono. Blocks.

    None of them if they are longer than the model hears at once: an answer to pieces, or to the beginning
    only, says nothing to train on about the whole.
    """
    max_s = segment_s(task, family.max_audio_s)
    limits = replace(limits, max_duration_s=min(limits.max_duration_s, max_s))
    try:
        waveforms = [
            decode_audio(recording, limits, channel=family.audio_input.channel) for recording in recordings
        ]
        family.audio_input.clips(waveforms, max_s)
    except AudioError:
        return []
    return waveforms
