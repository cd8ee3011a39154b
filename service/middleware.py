"""Around every request: its id, its log line, its place in the metrics, and the answer to the unexpected."""

from __future__ import annotations

import asyncio
import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ERROR_TABLE, ClientDisconnectedError, NotReadyError, error_response
from service.runtime import Runtime
from service.security_headers import secure
from service.uploads import Body

REQUEST_ID_HEADER = "X-Request-Id"
FEEDBACK_ID_HEADER = "X-Feedback-Id"
UNKNOWN_TASK = "unknown"
# Status of a request that ended before an answer was begun.
NOT_ANSWERED = ERROR_TABLE[ClientDisconnectedError].status
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger(__name__)


class RequestMiddleware:
    """Pure ASGI, so that the route sees the client's departure itself.

    Leaves in a request's state its `request_id`; `own_request_id`, which no client can choose, and the same
    where the client sent none; and `arrived_s`, the event loop's time when it came. A route leaves there the
    tasks asked for, those that exist, as `tasks`; an answer in events what it came to, as `stream_status`.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = uuid.uuid4().hex
        request_id = _sane(Headers(scope=scope).get(REQUEST_ID_HEADER)) or own_id
        state = scope.setdefault("state", {})
        state["request_id"], state["own_request_id"] = request_id, own_id
        state["arrived_s"] = asyncio.get_running_loop().time()
        body = Body(scope, receive, self._runtime.settings.upload_timeout_s)
        status = 0
        start_s = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if self._runtime.feedback is not None and _asks_a_task(scope) and message["status"] < 400:
                    headers[FEEDBACK_ID_HEADER] = own_id
                secure(headers, scope["path"])
                if message["status"] >= 400 and not await body.discard():
                    headers["Connection"] = "close"
                status = message["status"]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, body.receive, send_with_id)
            except Exception as error:
                log.exception("unexpected error")
                if status == 0:
                    await error_response(error, request_id, scope["path"])(scope, receive, send_with_id)
            except asyncio.CancelledError:
                # Only the end of the process cancels a request.
                if status == 0:
                    leaving = NotReadyError("the service is shutting down")
                    await error_response(leaving, request_id, scope["path"])(scope, receive, send_with_id)
            finally:
                self._runtime.release()
                self._record(scope, status, time.perf_counter() - start_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        tasks: list[str] = scope["state"].get("tasks") or [UNKNOWN_TASK]
        status = scope["state"].get("stream_status") or status or NOT_ANSWERED
        fields = {"method": scope["method"], "path": scope["path"], "status": status}
        if key := scope["state"].get("api_key"):
            fields["api_key"] = key.id
        fields["duration_ms"] = round(duration_s * 1e3, 1)
        if not _asks_a_task(scope):
            log.debug("request", **fields)
            return
        for task in tasks:
            self._runtime.metrics.observe_request(task=task, status=status, duration_s=duration_s)
        log.info("request", task=",".join(tasks), **fields)


def _asks_a_task(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "POST" and path.startswith(("/tasks", "/v1/audio/"))


def _sane(given: str | None) -> str | None:
    """The client's id if it is harmless in a header and a log line."""
    return given if given and _SANE_REQUEST_ID.fullmatch(given) else None
