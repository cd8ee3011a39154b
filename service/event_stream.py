"""Server-sent events: an answer while it is generated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import structlog
from fastapi.responses import Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.errors import ClientDisconnectedError, NotReadyError, error_kind, error_response

log = structlog.get_logger(__name__)

# Proxies that buffer answers (nginx) are told to pass these on.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


# The media type in the OpenAPI document, as FastAPI writes it for event streams of its own.
DOCUMENTED: dict[str, Any] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "required": ["data"],
            "properties": {
                "event": {"type": "string"},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
        }
    }
}


def event(data: BaseModel, name: str | None = None) -> bytes:
    """One event on the wire, with JSON as its data."""
    return format_sse_event(data_str=data.model_dump_json(), event=name)


async def started(events: AsyncGenerator[bytes]) -> EventStream:
    """The response, once the first event is there: what fails before it has an HTTP status of its own."""
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events)


class EventStream(Response):
    """Sends `first`, then `events`. Runs in the task that made the events, as their time limits need.

    What goes wrong on the way is the last event, `error`, with the envelope that it would have had as an
    answer; its status is left in the request's state as `stream_status`, for log and metrics.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        super().__init__(None, headers=_HEADERS)
        del self.headers["content-length"]
        self._first, self._events = first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send(send, self._first)
            try:
                async for each in events:
                    await _send(send, each)
            except asyncio.CancelledError:  # only the end of the process cancels a request
                await self._fail(NotReadyError("the service is shutting down"), scope, send)
                raise
            except Exception as error:  # noqa: BLE001 (the status is sent; the event is what can still be said)
                await self._fail(error, scope, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, error: Exception, scope: Scope, send: Send) -> None:
        kind = error_kind(error)
        scope["state"]["stream_status"] = kind.status
        if isinstance(error, ClientDisconnectedError):
            return
        if kind.status == 500:
            log.error("request failed", exc_info=error)
        body = error_response(error, scope["state"]["request_id"], scope["path"]).body
        await _send(send, format_sse_event(data_str=bytes(body).decode(), event="error"))


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
