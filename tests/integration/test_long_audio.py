"""A long recording, and the embedded model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from service.app import create_app
from service.settings import Settings
from tests.ready_client import ready_client
from tests.served import WAV
from tests.spoken_samples import SPOKEN

SAMPLES = SPOKEN[:4]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with ready_client(create_app(Settings(torch_threads=1))) as client:
        yield client


def ask(client: TestClient, samples: NDArray[np.int16]) -> dict[str, Any]:
    file = io.BytesIO()
    sf.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    response = client.post("/tasks/asr", content=file.getvalue(), headers=WAV)
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


def test_every_piece_is_answered_as_it_is_alone(client: TestClient) -> None:
    sentences = [sf.read(path, dtype="int16")[0] for path in SAMPLES]
    recording = np.concatenate([part for each in sentences for part in (each, np.zeros(16_000, np.int16))])
    answer = ask(client, recording)
    segments = answer["segments"]
    assert len(segments) == len(SAMPLES)
    assert answer["text"] == " ".join(each["text"] for each in segments)
    assert answer["usage"]["output_tokens"] > 4
    for each in segments:
        alone = ask(client, recording[round(each["start"] * 16_000) : round(each["end"] * 16_000)])
        assert (alone["text"], len(alone["segments"])) == (each["text"], 1)


def test_silence_is_not_given_to_the_model(client: TestClient) -> None:
    answer = ask(client, np.zeros(48_000, np.int16))
    assert (answer["text"], answer["no_speech"], answer["usage"]["output_tokens"]) == ("", True, 0)
