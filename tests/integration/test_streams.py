"""Answers in events, deadlines and headers, on real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from service.inference.exceptions import SequenceFailedError
from service.settings import Settings
from tests.fake_engine import TEXTS, FakeEngine, recording
from tests.served import LIMIT_S, WAV, run, serving

EVENTS = {**WAV, "Accept": "text/event-stream"}


def events_of(body: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in body.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize(("query", "headers"), [("?stream=true", WAV), ("", EVENTS)])
def test_the_deltas_are_the_text_and_the_last_event_is_the_answer(
    settings: Settings, engine: FakeEngine, query: str, headers: dict[str, str]
) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            response = await service.client.post(f"/tasks/asr{query}", content=recording(), headers=headers)
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            *deltas, (last, answer) = events_of(response.text)
            assert [name for name, _ in deltas] == ["delta"] * 4
            assert "".join(data["delta"] for _, data in deltas) == answer["text"] == TEXTS["asr"]
            plain = (await service.client.post("/tasks/asr", content=recording(), headers=WAV)).json()
            volatile = dict.fromkeys(("id", "timings_ms"))
            assert (last, {**answer, **volatile}) == ("done", {**plain, **volatile})
            assert answer["id"] == response.headers["x-request-id"]

    run(test)


def test_a_client_that_leaves_in_mid_stream_frees_its_slot(settings: Settings, engine: FakeEngine) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            url = "/tasks/asr?stream=true"
            async with service.client.stream("POST", url, content=recording(), headers=WAV) as response:
                assert await anext(response.aiter_lines()) == "event: delta"
                assert service.runtime.num_places_taken == 1
            assert await asyncio.to_thread(engine.cancelled.wait, LIMIT_S)
            await service.runtime.idle.wait()
            assert service.runtime.num_places_taken == 0
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="499",task="asr"} 1.0' in metrics

    run(test)


def test_what_fails_in_mid_stream_is_the_last_event(settings: Settings, engine: FakeEngine) -> None:
    engine.error = SequenceFailedError("secret")

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            response = await service.client.post("/tasks/asr", content=recording(), headers=EVENTS)
            (first, _), (last, data) = events_of(response.text)
            assert (response.status_code, first, last) == (200, "delta", "error")
            assert data["error"]["type"] == "internal_error"
            assert data["error"]["request_id"] == response.headers["x-request-id"]
            assert "secret" not in response.text
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="500",task="asr"} 1.0' in metrics

    run(test)


def test_what_fails_before_the_stream_has_its_own_status(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            refused = await service.client.post("/tasks/asr", content=b"hello" * 9, headers=EVENTS)
            assert (refused.status_code, refused.json()["error"]["type"]) == (415, "undecodable_audio")

    run(test)


@pytest.mark.parametrize("headers", [WAV, EVENTS])
def test_a_deadline_ends_a_request_and_frees_its_slot(
    settings: Settings, engine: FakeEngine, headers: dict[str, str]
) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            response = await service.client.post(
                "/tasks/asr", content=recording(), headers={**headers, "X-Request-Timeout": "0.5"}
            )
            if response.headers["content-type"].startswith("text/event-stream"):
                error = events_of(response.text)[-1][1]["error"]
            else:  # a slow machine may not come as far as the first event
                assert response.status_code == 504
                error = response.json()["error"]
            assert (error["type"], "0.5 s" in error["message"]) == ("deadline_exceeded", True)
            await service.runtime.idle.wait()
            assert service.runtime.num_places_taken == 0
            metrics = (await service.client.get("/metrics")).text
            assert 'ahamask_requests_total{status="504",task="asr"} 1.0' in metrics

    run(test)


def test_a_deadline_counts_the_upload(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            reader, writer = await asyncio.open_connection(*service.address)
            writer.write(
                b"POST /tasks/asr HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"
                b"X-Request-Timeout: 0.3\r\nContent-Length: 99\r\n\r\nRIFF"
            )
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 504 ")
            writer.close()
            assert engine.requests == []

    run(test)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_deadline_that_is_none_is_refused(settings: Settings, engine: FakeEngine, value: str) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            headers = {**WAV, "X-Request-Timeout": value}
            response = await service.client.post("/tasks/asr", content=recording(), headers=headers)
            assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_parameter")

    run(test)


def test_the_service_has_a_deadline_of_its_own(settings: Settings, engine: FakeEngine) -> None:
    engine.hold = True
    limited = settings.model_copy(update={"request_timeout_s": 0.4})

    async def test() -> None:
        async with serving(limited, engine) as service:
            await service.runtime.settled.wait()
            response = await service.client.post(
                "/tasks/asr", content=recording(), headers={**WAV, "X-Request-Timeout": "99"}
            )
            assert (response.status_code, "0.4 s" in response.text) == (504, True)

    run(test)


def test_every_answer_has_the_headers_that_browsers_heed(settings: Settings, engine: FakeEngine) -> None:
    async def get(client: httpx.AsyncClient, path: str) -> httpx.Headers:
        return (await client.get(path)).headers

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            for path in ("/healthz", "/tasks", "/nowhere", "/docs"):
                headers = await get(service.client, path)
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["x-frame-options"] == "DENY"
                assert headers["cache-control"] == "no-store"
                assert "frame-ancestors 'none'" in headers["content-security-policy"]
                assert "server" not in headers
            assert "cdn.jsdelivr.net" in (await get(service.client, "/docs"))["content-security-policy"]
            assert "script-src" not in (await get(service.client, "/tasks"))["content-security-policy"]

    run(test)
