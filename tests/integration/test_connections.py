"""Clients that leave, that never stop sending, or that come when the house is full; on real sockets."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from service.settings import Settings
from tests.fake_engine import FakeEngine, recording
from tests.served import LIMIT_S, WAV, Service, run, serving


def test_a_client_that_leaves_frees_its_slot(settings: Settings, engine: FakeEngine) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            _, writer = await asyncio.open_connection(*service.address)
            body = recording()
            writer.write(
                b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await service.in_engine()
            assert service.runtime.num_places_taken == 1
            writer.transport.abort()
            assert await asyncio.to_thread(engine.cancelled.wait, LIMIT_S)
            await service.runtime.idle.wait()
            assert service.runtime.num_places_taken == 0
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="499",task="asr"} 1.0' in metrics
            engine.hold = False
            assert (await service.post()).status_code == 200

    run(test)


@pytest.mark.parametrize("content_type", [b"audio/wav", b"multipart/form-data; boundary=b"])
def test_a_client_that_leaves_during_the_upload_costs_nothing(
    settings: Settings, engine: FakeEngine, content_type: bytes
) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            _, writer = await asyncio.open_connection(*service.address)
            writer.write(
                b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: 99\r\n\r\n--b"
                % content_type
            )
            while service.runtime.num_accepted == 0:
                await service.client.get("/healthz")
            writer.transport.abort()
            await service.runtime.idle.wait()
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="499",task="asr"} 1.0' in metrics
            assert engine.requests == []

    run(test)


def test_headers_that_do_not_end_are_given_up(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            reader, writer = await asyncio.open_connection(*service.address)
            writer.write(b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\n")
            for _ in range(17):
                writer.write(b"X-Header: %b\r\n" % (b"a" * 4096))
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            writer.close()

    run(test)


ENDLESS = pytest.mark.parametrize("content_type", [b"audio/wav", b"multipart/form-data; boundary=b"])


async def begin_upload(
    service: Service, content_type: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a recording has begun that is far from its end."""
    reader, writer = await asyncio.open_connection(*service.address)
    writer.write(
        b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: 9999\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' % content_type
    )
    return reader, writer


@ENDLESS
def test_an_upload_that_does_not_end_is_given_up(
    settings: Settings, engine: FakeEngine, content_type: bytes
) -> None:
    async def test() -> None:
        patience = settings.model_copy(update={"upload_timeout_s": 0.05})
        async with serving(patience, engine) as service:
            await service.runtime.settled.wait()
            reader, writer = await begin_upload(service, content_type)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 408 ")
            assert b"\r\nconnection: close\r\n" in head
            assert b'"upload_timeout"' in await reader.read()  # to the end: the connection is closed
            writer.close()
            await service.runtime.idle.wait()
            assert engine.requests == []
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="408",task="asr"} 1.0' in metrics

    run(test)


@ENDLESS
def test_a_client_that_sends_a_byte_now_and_then_is_given_up(
    settings: Settings, engine: FakeEngine, content_type: bytes
) -> None:
    async def test() -> None:
        async with serving(settings.model_copy(update={"upload_timeout_s": 0.2}), engine) as service:
            await service.runtime.settled.wait()
            reader, writer = await begin_upload(service, content_type)

            async def trickle() -> None:
                while True:
                    writer.write(b"-")
                    await service.client.get("/healthz")

            trickling = asyncio.create_task(trickle())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
            trickling.cancel()
            writer.close()
            await service.runtime.idle.wait()
            assert engine.requests == []

    run(test)


def test_more_uploads_than_allowed_are_refused(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with serving(settings.model_copy(update={"max_uploads": 1}), engine) as service:
            await service.runtime.settled.wait()
            content = recording()
            reader, writer = await asyncio.open_connection(*service.address)
            writer.write(
                b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: audio/wav\r\nContent-Length: %d\r\n\r\n" % len(content)
            )
            while service.runtime.num_uploads < 1:
                await service.client.get("/healthz")
            refused = await service.post()
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["type"] == "queue_full"
            writer.write(content)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.close()
            assert (await service.post()).status_code == 200

    run(test)


def test_a_full_house_is_refused_before_its_upload_is_read(settings: Settings, engine: FakeEngine) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            held = [service.post(), service.post()]
            while service.runtime.num_places_taken < 2:
                await service.client.get("/healthz")
            reader, writer = await asyncio.open_connection(*service.address)
            writer.write(
                b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: audio/wav\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n"
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 429 ")
            assert b"\r\nretry-after: 1\r\n" in head
            writer.close()
            engine.release.set()
            assert [(await response).status_code for response in held] == [200, 200]

    run(test)


@pytest.mark.parametrize("path", ["/tasks/asr", "/tasks/unknown"])
def test_a_refusal_reaches_a_client_that_is_still_sending(
    settings: Settings, engine: FakeEngine, path: str
) -> None:
    def post() -> int:
        connection = http.client.HTTPConnection(settings.host, settings.port)
        connection.request("POST", path, body=bytes(30 * 2**20), headers=WAV)  # all of it, before it listens
        return connection.getresponse().status

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            assert await asyncio.to_thread(post) == (413 if path == "/tasks/asr" else 404)

    run(test)


def test_an_endless_upload_is_refused(settings: Settings, engine: FakeEngine) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**20)

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            with suppress(httpx.TransportError):  # the connection is closed on a client that never listens
                await service.client.post("/tasks/asr", content=endless(), headers=WAV)
            await service.runtime.idle.wait()
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="413",task="asr"} 1.0' in metrics

    run(test)
