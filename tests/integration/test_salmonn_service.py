"""The toy SALMONN behind the service, under a mask of the published form: the published code's answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from fastapi.testclient import TestClient

from lalm.families import identify
from lalm.head_mask import HeadMask
from service.app import create_app
from service.settings import Settings
from tests.mask_files import write_mask_file
from tests.ready_client import ready_client
from tests.salmonn_toy import CASES, DATA, MODEL_FILE, NUM_CLIPS, Reference, head_mask_of, waveform

MAX_NEW_TOKENS = 20
TASKS = {"asr": "mask", "asr-plain": "empty_nomask"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    masks_dir, identity = tmp_path_factory.mktemp("masks"), identify(MODEL_FILE)
    for name, num_audios in (("asr", 1), ("asr-plain", 1), ("asv", 2)):
        head_mask = head_mask_of(TASKS.get(name, "mask")) or HeadMask.ones(4, 6)
        spec = {"max_new_tokens": MAX_NEW_TOKENS, "num_audios": num_audios}
        write_mask_file(masks_dir, name, identity, head_mask, **spec)
    app = create_app(Settings(model=str(MODEL_FILE), masks_dir=masks_dir, max_slots=3))
    with ready_client(app) as client:
        yield client


def post(client: TestClient, url: str, *recordings: bytes) -> dict[str, Any]:
    response = client.post(url, files=[("file", recording) for recording in recordings])
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def clip(number: int) -> bytes:
    return (DATA / "audio" / f"clip{number}.flac").read_bytes()


@pytest.mark.parametrize("number", range(NUM_CLIPS))
@pytest.mark.parametrize("task", TASKS)
def test_an_answer_is_the_published_codes(client: TestClient, number: int, task: str) -> None:
    """Clip 1 is stereo, and half a second long."""
    assert TASKS[task] in CASES
    answer = post(client, f"/tasks/{task}", clip(number))
    expected = Reference().case(number, TASKS[task])
    assert answer["text"] == expected["greedy_text"][0].strip()
    tokens = [token for token in expected["greedy"][0][1:] if token != 2]  # neither BOS nor the end
    assert answer["usage"] == {"audio_tokens": 88, "output_tokens": len(tokens)}
    assert answer["model"] == "toy-salmonn"


def test_several_tasks_share_a_batch(client: TestClient) -> None:
    results = post(client, "/tasks?tasks=asr,asr-plain", clip(0))["results"]
    expected = {task: Reference().case(0, case)["greedy_text"][0].strip() for task, case in TASKS.items()}
    assert {task: answer["text"] for task, answer in results.items()} == expected


def test_clips_of_all_lengths_at_a_time_are_answered_as_each_alone(client: TestClient) -> None:
    asked = [(task, number) for task in TASKS for number in range(NUM_CLIPS)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: post(client, f"/tasks/{each[0]}", clip(each[1])), asked))
    for (task, number), answer in zip(asked, answers, strict=True):
        assert answer["text"] == Reference().case(number, TASKS[task])["greedy_text"][0].strip()


def test_a_pair_is_heard_as_one_clip_with_a_pause(client: TestClient) -> None:
    pair = post(client, "/tasks/asv", clip(0), clip(2))
    joined = io.BytesIO()
    pause = np.zeros(1_600, dtype=np.float32)
    samples = np.concatenate([waveform(0), pause, waveform(2)])
    sf.write(joined, samples, 16_000, format="WAV", subtype="FLOAT")
    assert pair["text"] == post(client, "/tasks/asr", joined.getvalue())["text"]
    assert pair["usage"]["audio_tokens"] == 88
    assert pair["text"] != post(client, "/tasks/asv", clip(2), clip(0))["text"]


def test_a_pair_that_is_too_long_together_is_refused(client: TestClient) -> None:
    buffer = io.BytesIO()
    sf.write(buffer, np.zeros(16 * 16_000), 16_000, format="WAV")
    files = [("file", buffer.getvalue())] * 2
    response = client.post("/tasks/asv", files=files)
    assert response.status_code == 413
    assert "32.1 s together; 30 s are allowed" in response.json()["error"]["message"]


def test_a_mask_for_other_weights_is_refused(tmp_path: Path) -> None:
    identity = identify(MODEL_FILE).model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    head_mask = head_mask_of("mask")
    assert head_mask is not None
    write_mask_file(tmp_path, "asr", identity, head_mask)
    app = create_app(Settings(model=str(MODEL_FILE), masks_dir=tmp_path))
    with ready_client(app) as client:
        assert client.get("/readyz").status_code == 503
        assert "fingerprint" in app.state.runtime.failure
