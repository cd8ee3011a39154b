"""How long a request may take, upload included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Header, Request

from service.errors import DeadlineExceededError
from service.runtime import Runtime


class Deadline:
    """A point in the time of the running event loop, `timeout_s` after a request's first byte."""

    def __init__(self, arrived_s: float, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end_s = arrived_s + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end_s - asyncio.get_running_loop().time())

    def error(self) -> DeadlineExceededError:
        """What to raise once no time is left."""
        return DeadlineExceededError(self._timeout_s)

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Cancel what is awaited inside when the time is over.

        Raises:
            DeadlineExceededError: it is over.
        """
        try:
            async with asyncio.timeout_at(self._end_s) as timeout:
                yield
        except TimeoutError:
            if timeout.expired():
                raise self.error() from None
            raise


async def deadline_of(
    request: Request,
    x_request_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            allow_inf_nan=False,
            description="Seconds this request may take, upload included; beyond them 504. "
            "The service's own limit holds if it is shorter.",
        ),
    ] = None,
) -> Deadline:
    """The deadline of a request: what it asks for, within what the service allows. A dependency of
    routes, and a coroutine, since FastAPI runs other functions in threads."""
    runtime: Runtime = request.app.state.runtime
    limit_s = runtime.settings.request_timeout_s
    timeout_s = limit_s if x_request_timeout is None else min(x_request_timeout, limit_s)
    return Deadline(request.state.arrived_s, timeout_s)
