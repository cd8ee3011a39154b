"""The API keys of a running service: those of a file, read again as soon as the file has changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from service.errors import TooManyRequestsOfKeyError
from service.keys import ApiKey, KeyFile, KeyFileError
from service.metrics import Metrics

log = structlog.get_logger(__name__)

_Signature = tuple[int, int, int, int]


class KeyRing:
    """Belongs to the event loop's thread.

    The file is looked at (one `stat`) for every request, so that a revoked key is refused from then on. A
    file that cannot be read any more changes nothing: the old keys stay, which is logged and counted once.

    max_concurrent: requests at a time of a key that has no limit of its own; None for no limit.

    Raises:
        KeyFileError: the file is wrong.
    """

    def __init__(self, path: Path, metrics: Metrics, *, max_concurrent: int | None) -> None:
        self._path = path
        self._metrics = metrics
        self._max_concurrent = max_concurrent
        self._signature = _signature(path)
        self._keys = KeyFile.load(path)
        self._num_requests: Counter[str] = Counter()

    def find(self, secret: str) -> ApiKey | None:
        """The key that `secret` is, by the file as it is now; None if there is none."""
        if _signature(self._path) != self._signature:
            self.reload()
        return self._keys.find(secret)

    def reload(self) -> None:
        """Read the file, whether it has changed or not."""
        self._signature = _signature(self._path)
        try:
            self._keys = KeyFile.load(self._path)
        except KeyFileError as error:
            log.error("API keys not reloaded; the old ones stay", reason=str(error))
        else:
            log.info("API keys reloaded", num_keys=len(self._keys.keys))
            self._metrics.count_reload("api_keys", ok=True)
            return
        self._metrics.count_reload("api_keys", ok=False)

    @contextmanager
    def request_of(self, key: ApiKey) -> Iterator[None]:
        """One of the requests that `key` may have at a time.

        Raises:
            TooManyRequestsOfKeyError: it has as many as it may.
        """
        limit = key.max_concurrent or self._max_concurrent
        if limit is not None and self._num_requests[key.id] >= limit:
            raise TooManyRequestsOfKeyError(limit)
        self._num_requests[key.id] += 1
        try:
            yield
        finally:
            self._num_requests[key.id] -= 1
            if not self._num_requests[key.id]:
                del self._num_requests[key.id]


def _signature(path: Path) -> _Signature | None:
    """What tells one content of the file from the next; None if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
