"""OpenAI's own client against the running service."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile as sf
from openai import AsyncOpenAI

from lalm.audio import decode_audio
from lalm.head_mask import MaskFile
from service.settings import Settings
from tests.fake_engine import TEXTS, FakeEngine, recording, write_masks
from tests.served import WAV, Service, free_port, run, serving
from tests.spoken_samples import SPOKEN


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_masks(tmp_path)
    asr = MaskFile.load(tmp_path / "asr.json")
    for name, keys in {"asr": {"segment_s": 2.5}, "s2tt": {}}.items():
        task = asr.task.model_copy(update={"name": name, **keys})
        asr.model_copy(update={"task": task}).save(tmp_path / f"{name}.json")
    return Settings(masks_dir=tmp_path, port=free_port(), max_upload_bytes=2_000_000)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setitem(TEXTS, "s2tt", "mach das licht an")
    return FakeEngine()


@asynccontextmanager
async def openai_client(settings: Settings, engine: FakeEngine) -> AsyncIterator[tuple[AsyncOpenAI, Service]]:
    async with serving(settings, engine) as service:
        await service.runtime.settled.wait()
        url = f"http://{settings.host}:{settings.port}/v1"
        async with AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
            yield client, service


Ask = Callable[[AsyncOpenAI], Awaitable[None]]


def with_client(settings: Settings, engine: FakeEngine, ask: Ask) -> None:
    async def test() -> None:
        async with openai_client(settings, engine) as (client, _):
            await ask(client)

    run(test)


def upload(content: bytes | None = None) -> tuple[str, bytes, str]:
    return ("a.wav", content or recording(), "audio/wav")


def three_sentences() -> bytes:
    shortest = min(SPOKEN, key=lambda path: path.stat().st_size)
    sentence, silence = decode_audio(shortest), np.zeros(16_000, dtype=np.float32)
    file = io.BytesIO()
    parts = [sentence, silence, sentence, silence, sentence]
    sf.write(file, np.concatenate(parts), 16_000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(("model", "task"), [("asr", "asr"), ("toy", "asr"), ("s2tt", "s2tt")])
def test_a_transcription(settings: Settings, engine: FakeEngine, model: str, task: str) -> None:
    async def ask(client: AsyncOpenAI) -> None:
        answer = await client.audio.transcriptions.create(
            model=model, file=upload(), language="en", prompt="Lights", temperature=0
        )
        assert answer.text == TEXTS[task]
        assert answer.usage is not None
        assert answer.usage.type == "tokens"
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 3)
        assert answer._request_id == engine.requests[0].request_id

    with_client(settings, engine, ask)


@pytest.mark.parametrize("model", ["s2tt", "toy"])
def test_a_translation(settings: Settings, engine: FakeEngine, model: str) -> None:
    async def ask(client: AsyncOpenAI) -> None:
        answer = await client.audio.translations.create(model=model, file=upload())
        assert answer.text == "mach das licht an"

    with_client(settings, engine, ask)


def test_verbose_json_has_the_segments_of_a_long_recording(settings: Settings, engine: FakeEngine) -> None:
    async def ask(client: AsyncOpenAI) -> None:
        answer = await client.audio.transcriptions.create(
            model="asr",
            file=upload(three_sentences()),
            response_format="verbose_json",
            timestamp_granularities=["segment"],
            language="en",
        )
        assert answer.text == " ".join([TEXTS["asr"]] * 3)
        assert (answer.language, answer.usage.type if answer.usage else None) == ("en", "duration")
        segments = answer.segments or []
        assert [each.id for each in segments] == [0, 1, 2]
        assert 0 <= segments[0].start < segments[0].end <= segments[1].start < answer.duration

    with_client(settings, engine, ask)


def test_text_srt_and_vtt(settings: Settings, engine: FakeEngine) -> None:
    async def ask(client: AsyncOpenAI) -> None:
        async def formatted(name: Any) -> str:
            answer = await client.audio.transcriptions.create(
                model="asr", file=upload(recording(1.25)), response_format=name
            )
            return str(answer)

        assert await formatted("text") == "turn on the light\n"
        assert await formatted("srt") == "1\n00:00:00,000 --> 00:00:01,250\nturn on the light\n"
        assert await formatted("vtt") == "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nturn on the light\n"

    with_client(settings, engine, ask)


def test_a_streamed_transcription(settings: Settings, engine: FakeEngine) -> None:
    async def ask(client: AsyncOpenAI) -> None:
        stream = await client.audio.transcriptions.create(
            model="asr", file=upload(three_sentences()), stream=True
        )
        *deltas, done = [event async for event in stream]
        assert {event.type for event in deltas} == {"transcript.text.delta"}
        assert done.type == "transcript.text.done"
        text = "".join(event.delta for event in deltas if event.type == "transcript.text.delta")
        assert text == done.text == " ".join([TEXTS["asr"]] * 3)
        assert done.usage is not None
        assert done.usage.output_tokens == 9

    with_client(settings, engine, ask)


def test_silence_is_no_speech(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        file = io.BytesIO()
        sf.write(file, np.zeros(16_000), 16_000, format="WAV")
        async with openai_client(settings, engine) as (client, service):
            answer = await client.audio.transcriptions.create(model="asr", file=upload(file.getvalue()))
            stream = await client.audio.transcriptions.create(
                model="asr", file=upload(file.getvalue()), stream=True
            )
            assert [event.type async for event in stream] == ["transcript.text.done"]
            plain = (await service.client.post("/tasks/asr", content=file.getvalue(), headers=WAV)).json()
            assert (answer.text, plain["text"], plain["no_speech"], plain["segments"]) == ("", "", True, [])
            label = (await service.client.post("/tasks/gr", content=file.getvalue(), headers=WAV)).json()
            assert (label["result"], label["no_speech"], label["format_ok"]) == ({"label": None}, True, False)
            assert engine.requests == []

    run(test)


def test_the_models_are_the_model_and_its_tasks_with_text(settings: Settings, engine: FakeEngine) -> None:
    async def ask(client: AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == ["toy", "asr", "s2tt"]
        model = await client.models.retrieve("asr")
        assert (model.id, model.object, model.owned_by, model.created > 0) == (
            "asr",
            "model",
            "ahamask",
            True,
        )
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("whisper-1")

    with_client(settings, engine, ask)


REFUSALS: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], int, str, str]] = {
    # name: (arguments, exception, status, code, param)
    "model": ({"model": "whisper-1"}, openai.NotFoundError, 404, "model_not_found", "model"),
    "label": ({"model": "gr"}, openai.UnprocessableEntityError, 422, "invalid_parameter", "model"),
    "pair": ({"model": "asv"}, openai.UnprocessableEntityError, 422, "invalid_parameter", "model"),
    "temperature": (
        {"temperature": 0.7},
        openai.UnprocessableEntityError,
        422,
        "invalid_parameter",
        "temperature",
    ),
    "words": (
        {"timestamp_granularities": ["word"]},
        openai.UnprocessableEntityError,
        422,
        "invalid_parameter",
        "timestamp_granularities[]",
    ),
    "streamed subtitles": (
        {"response_format": "srt", "stream": True},
        openai.UnprocessableEntityError,
        422,
        "invalid_parameter",
        "response_format",
    ),
    "unknown field": (
        {"extra_body": {"best_of": 3}},
        openai.UnprocessableEntityError,
        422,
        "invalid_parameter",
        "best_of",
    ),
    "not audio": (
        {"file": upload(b"hello" * 9)},
        openai.APIStatusError,
        415,
        "undecodable_audio",
        "file",
    ),
    "empty": ({"file": ("a.wav", b"", "audio/wav")}, openai.BadRequestError, 400, "empty_audio", "file"),
    "too large": ({"file": upload(bytes(2_200_000))}, openai.APIStatusError, 413, "upload_too_large", "file"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_answered_raises_the_clients_error(
    settings: Settings, engine: FakeEngine, name: str
) -> None:
    arguments, exception, status, code, param = REFUSALS[name]

    async def ask(client: AsyncOpenAI) -> None:
        with pytest.raises(exception) as raised:
            await client.audio.transcriptions.create(**({"model": "asr", "file": upload()} | arguments))
        error = raised.value
        assert (error.status_code, error.code, error.param) == (status, code, param)
        assert error.type == "invalid_request_error"
        assert isinstance(error.body, dict)
        assert error.body["request_id"] == error.request_id
        assert engine.requests == []

    with_client(settings, engine, ask)


def test_what_fails_in_mid_stream_raises_the_clients_error(settings: Settings, engine: FakeEngine) -> None:
    engine.error = RuntimeError("secret")

    async def ask(client: AsyncOpenAI) -> None:
        stream = await client.audio.transcriptions.create(model="asr", file=upload(), stream=True)
        with pytest.raises(openai.APIError) as raised:
            async for _ in stream:
                pass
        assert "secret" not in str(raised.value)
        assert isinstance(raised.value.body, dict)
        assert raised.value.body["type"] == "server_error"

    with_client(settings, engine, ask)


def test_the_page_of_the_api_has_the_form(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with openai_client(settings, engine) as (_, service):
            document = (await service.client.get("/openapi.json")).json()
            post = document["paths"]["/v1/audio/transcriptions"]["post"]
            form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
            assert form["required"] == ["file", "model"]
            assert {"language", "response_format", "stream"} <= set(form["properties"])
            assert "$ref" not in json.dumps(form)

    run(test)
