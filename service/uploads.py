"""Read the recordings of a request, counting bytes while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from service.errors import (
    ClientDisconnectedError,
    InvalidParameterError,
    MalformedBodyError,
    UnsupportedBodyError,
    UploadTimeoutError,
    UploadTooLargeError,
)
from service.preparation import PART

# What is read, and for how long, of an upload that was refused before its end.
MAX_DISCARD_BYTES = 256 * 2**20
DISCARD_TIMEOUT_S = 2.0
# Room for the boundaries and headers of a multipart body.
MULTIPART_OVERHEAD_BYTES = 64 * 1024
MAX_PARTS = 8
MAX_FIELDS = 32


class Body:
    """The body of a request on its way to the application, and what a route left unread of it.

    timeout_s: seconds from now until its last byte; a client that sends a byte now and then would hold its
    connection and what it has sent for ever.

    A server that answers and closes while its client still sends resets the connection, and the answer is
    lost: most clients would see a network error, not the reason. So the rest is taken in first, within
    limits.
    """

    def __init__(self, scope: Scope, receive: Receive, timeout_s: float) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._timeout_s = timeout_s
        self._end_s = asyncio.get_running_loop().time() + timeout_s
        self._finished = not {"content-length", "transfer-encoding"} & set(headers)
        # A client that has asked before sending, and was not told to go on, has sent nothing.
        self._held_back = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        """The next event of the request, for the application.

        Raises:
            UploadTimeoutError: the body is not complete, and its time is over.
        """
        self._held_back = False
        if self._finished:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end_s):
                message = await self._receive()
        except TimeoutError:
            raise UploadTimeoutError(self._timeout_s) from None
        self._finished = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def discard(self) -> bool:
        """Take in what is left, up to MAX_DISCARD_BYTES and for DISCARD_TIMEOUT_S; was that all?"""
        num_bytes = 0
        with suppress(TimeoutError, UploadTimeoutError):
            async with asyncio.timeout(DISCARD_TIMEOUT_S):
                while not (self._finished or self._held_back) and num_bytes < MAX_DISCARD_BYTES:
                    num_bytes += len((await self.receive()).get("body", b""))
        return self._finished


async def read_recordings(request: Request, *, num_audios: int, max_bytes: int) -> list[bytes]:
    """The uploaded recordings, `num_audios` of them, each as it was sent.

    max_bytes: limit of one recording; a body beyond it is given up as soon as that is seen.

    Raises:
        UploadTooLargeError, MalformedBodyError, UnsupportedBodyError, InvalidParameterError,
        ClientDisconnectedError.
    """
    content_type = request.headers.get("content-type", "application/octet-stream")
    media_type = content_type.partition(";")[0].strip().lower()
    try:
        if media_type == "multipart/form-data":
            limit_bytes = num_audios * max_bytes + MULTIPART_OVERHEAD_BYTES
            return await _read_multipart(request, num_audios, limit_bytes)
        if media_type.startswith(("audio/", "video/")) or media_type == "application/octet-stream":
            return [await _read_raw(request, num_audios, max_bytes)]
    except ClientDisconnect:
        raise ClientDisconnectedError("the client went away during the upload") from None
    raise UnsupportedBodyError(
        f"Content-Type {media_type!r} is not accepted; send multipart/form-data with a part named {PART!r}, "
        "or the recording itself as audio/*, video/* or application/octet-stream",
        param="Content-Type",
    )


@dataclass(frozen=True)
class Form:
    """A form with one recording: the part `file`, and its fields as they were sent, in order."""

    file: bytes
    fields: list[tuple[str, str]]


async def read_form(request: Request, *, max_bytes: int) -> Form:
    """A form with one recording and fields beside it.

    max_bytes: limit of the recording; a body beyond it is given up as soon as that is seen.

    Raises:
        UploadTooLargeError, MalformedBodyError, UnsupportedBodyError, InvalidParameterError,
        ClientDisconnectedError.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise UnsupportedBodyError(
            f"Content-Type {media_type!r} is not accepted; send multipart/form-data", param="Content-Type"
        )
    try:
        form = await _parse(request, max_bytes + MULTIPART_OVERHEAD_BYTES, max_fields=MAX_FIELDS)
    except ClientDisconnect:
        raise ClientDisconnectedError("the client went away during the upload") from None
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        if [name for name, _ in files] != [PART]:
            raise InvalidParameterError(f"one part {PART!r} is needed, with a filename", param=PART)
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
        return Form(await files[0][1].read(), fields)
    finally:
        await form.close()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, whatever its Content-Type.

    Raises:
        UploadTooLargeError, ClientDisconnectedError.
    """
    try:
        return await _read_all(request, max_bytes)
    except ClientDisconnect:
        raise ClientDisconnectedError("the client went away during the upload") from None


async def _read_raw(request: Request, num_audios: int, max_bytes: int) -> bytes:
    if num_audios != 1:
        raise InvalidParameterError(
            f"this task takes {num_audios} recordings: send multipart/form-data with {num_audios} parts "
            f"named {PART!r}",
            param=PART,
        )
    return await _read_all(request, max_bytes)


async def _read_all(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async with aclosing(_limited(request, max_bytes)) as stream:
        async for chunk in stream:
            body += chunk
    return bytes(body)


async def _read_multipart(request: Request, num_audios: int, limit_bytes: int) -> list[bytes]:
    form = await _parse(request, limit_bytes, max_fields=MAX_PARTS)
    try:
        files = _files(form, num_audios)
        return [await file.read() for file in files]
    finally:
        await form.close()


async def _parse(request: Request, limit_bytes: int, *, max_fields: int) -> FormData:
    """The parts of a form, kept in memory: the limit is there, and the disk may be read-only."""
    async with aclosing(_limited(request, limit_bytes)) as stream:
        parser = MultiPartParser(request.headers, stream, max_files=MAX_PARTS, max_fields=max_fields)
        parser.spool_max_size = limit_bytes
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise MalformedBodyError(f"not a multipart/form-data body: {error.message}") from error


def _files(form: FormData, num_audios: int) -> list[UploadFile]:
    """The parts named `file`; any other part is an error, lest it be ignored in silence."""
    files = []
    for name, part in form.multi_items():
        if name != PART:
            raise InvalidParameterError(f"unknown part {name!r}; only {PART!r} is read", param=name)
        if not isinstance(part, UploadFile):
            raise InvalidParameterError(f"part {PART!r} must be a file, with a filename", param=PART)
        files.append(part)
    if len(files) != num_audios:
        plural = "s" if num_audios > 1 else ""
        raise InvalidParameterError(
            f"this task takes {num_audios} part{plural} named {PART!r}, not {len(files)}", param=PART
        )
    return files


async def _limited(request: Request, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body, until it is seen that it has more than `limit_bytes`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise UploadTooLargeError(limit_bytes)
    received = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            received += len(chunk)
            if received > limit_bytes:
                raise UploadTooLargeError(limit_bytes)
            yield chunk
