"""What one running service holds, and the phases it goes through.

    LOADING -> READY -> DRAINING
          └--> FAILED

Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from lalm.audio import AudioLimits
from service.audio_pool import audio_pool
from service.catalogue import Catalogue
from service.errors import NotReadyError
from service.feedback import Feedback
from service.inference.exceptions import QueueFullError
from service.key_ring import KeyRing
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from lalm.family import ModelFamily
    from lalm.head_mask import HeadMask
    from service.inference.request import EngineRequest, EngineResult

RETRY_AFTER_FULL_S = 1.0


class Phase(StrEnum):
    """Where a service stands between start and exit."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class InferenceEngine(Protocol):
    """What the HTTP side needs of an engine; service.inference.engine.Engine is the one that runs."""

    @property
    def family(self) -> ModelFamily: ...
    @property
    def ready(self) -> bool: ...
    def start(self, head_masks: Iterable[HeadMask] = ()) -> None: ...
    def drain(self, timeout_s: float) -> bool: ...
    def stop(self) -> None: ...
    async def submit_together(self, requests: list[EngineRequest]) -> list[EngineResult]: ...


@dataclass(frozen=True)
class Loaded:
    """What exists once the model is in memory."""

    engine: InferenceEngine
    catalogue: Catalogue
    audio_limits: AudioLimits


class Runtime:
    """State of one service: settings, metrics, the audio workers, and what is loaded.

    created_s: Unix time. started: the application has begun to load. settled: loading is over, well or badly.
    idle: no accepted request is unanswered. key_ring: None for a service that everybody may use.
    feedback: None for a service that takes no corrected answers.

    Raises:
        KeyFileError: the file of API keys is wrong.
        SettingsError: the folder of corrected answers cannot be made or written.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.created_s = int(time.time())
        self.metrics = Metrics()
        self.key_ring = _key_ring(settings, self.metrics)
        self.phase = Phase.LOADING
        self.failure: str | None = None
        self.audio_pool = audio_pool(settings.audio_workers)
        self.feedback = Feedback(settings, self.audio_pool) if settings.feedback_dir else None
        self.started = asyncio.Event()
        self.settled = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._accepted: set[asyncio.Task[Any] | None] = set()
        self.num_places_taken = 0
        self.num_uploads = 0
        self._loaded: Loaded | None = None

    def become_ready(self, loaded: Loaded) -> None:
        """Take requests from now on, unless the service is on its way out already."""
        self._loaded = loaded
        self.metrics.describe(loaded.engine.family.identity, loaded.catalogue, self.settings)
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY
        self.settled.set()

    def replace_catalogue(self, catalogue: Catalogue) -> None:
        """Answer with these tasks from now on; requests that have begun keep the entries they have."""
        assert self._loaded is not None
        self._loaded = replace(self._loaded, catalogue=catalogue)
        self.metrics.describe_tasks(catalogue)

    def fail(self, reason: str) -> None:
        """Loading failed for good."""
        self.phase, self.failure = Phase.FAILED, reason
        self.settled.set()

    def begin_drain(self) -> None:
        """Refuse new requests; those accepted are answered."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    @property
    def loaded(self) -> Loaded | None:
        """What was loaded, whatever the phase."""
        return self._loaded

    def serving(self) -> Loaded:
        """What answers requests.

        Raises:
            NotReadyError: loading, draining, failed, or the engine has stopped.
        """
        if self.phase is not Phase.READY or self._loaded is None:
            raise NotReadyError(f"the service is not ready: {self.failure or self.phase.value}")
        self.check_alive()
        return self._loaded

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the `max_slots + max_waiting` places for requests between upload and answer.

        Raises:
            QueueFullError: all are taken.
        """
        self._check_room()
        self.num_places_taken += 1
        try:
            yield
        finally:
            self.num_places_taken -= 1

    @contextmanager
    def upload(self) -> Iterator[None]:
        """One of the `max_uploads` requests whose bodies are being read; it is accepted.

        Raises:
            QueueFullError: there are as many, or a request that came now would find no place.
        """
        self._check_room()
        if self.num_uploads >= self.settings.max_uploads:
            raise QueueFullError(RETRY_AFTER_FULL_S)
        self.accept()
        self.num_uploads += 1
        try:
            yield
        finally:
            self.num_uploads -= 1

    def _check_room(self) -> None:
        if self.num_places_taken >= self.settings.max_slots + self.settings.max_waiting:
            raise QueueFullError(RETRY_AFTER_FULL_S)

    def check_alive(self) -> None:
        """Whether the process can still become or stay useful.

        Raises:
            NotReadyError: the engine has died; only a restart helps.
        """
        if self.phase is Phase.READY and self._loaded is not None and not self._loaded.engine.ready:
            raise NotReadyError("the engine has died")

    def accept(self) -> None:
        """Promise to answer the request of the current asyncio task before the service exits."""
        self._accepted.add(asyncio.current_task())
        self.idle.clear()

    def release(self) -> None:
        """The current task's request is over, its answer sent."""
        self._accepted.discard(asyncio.current_task())
        if not self._accepted:
            self.idle.set()

    def abandon(self) -> None:
        """Break the promise: accepted requests are answered 503 now."""
        for task in self._accepted:
            if task is not None:
                task.cancel()

    @property
    def num_accepted(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._accepted)


def _key_ring(settings: Settings, metrics: Metrics) -> KeyRing | None:
    if settings.api_keys_file is None:
        return None
    return KeyRing(settings.api_keys_file, metrics, max_concurrent=settings.api_key_max_concurrent)
