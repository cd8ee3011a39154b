from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Scope

from service.errors import UploadTimeoutError
from service.uploads import Body

UPLOAD: Scope = {"type": "http", "headers": [(b"content-length", b"9")]}
PART: Message = {"type": "http.request", "body": b"abc", "more_body": True}
END: Message = {"type": "http.request", "body": b"def", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


class Client:
    """Sends `messages`, then nothing until it is let go."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.leaving = asyncio.Event()

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self.leaving.wait()
        return GONE


def test_a_body_that_does_not_end_is_given_up() -> None:
    async def test() -> None:
        body = Body(UPLOAD, Client(PART).receive, timeout_s=0.0)
        assert await body.receive() == PART
        with pytest.raises(UploadTimeoutError, match="within 0 s"):
            await body.receive()
        assert not await body.discard()

    asyncio.run(test())


@pytest.mark.parametrize("scope", [UPLOAD, {"type": "http", "headers": []}])
def test_only_the_body_is_timed_not_what_comes_after_it(scope: Any) -> None:
    async def test() -> None:
        client = Client(PART, END) if scope is UPLOAD else Client()
        body = Body(scope, client.receive, timeout_s=0.0)
        if scope is UPLOAD:
            assert [await body.receive(), await body.receive()] == [PART, END]
        assert await body.discard()
        leaving = asyncio.create_task(body.receive())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not leaving.done()
        client.leaving.set()
        assert await leaving == GONE

    asyncio.run(test())
