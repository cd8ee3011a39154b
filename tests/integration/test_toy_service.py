"""The whole service on a random-weight checkpoint: what it says is noise, how it says it is not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor, gating
from lalm.head_mask import HeadMask
from service.app import create_app
from service.settings import Settings
from tests.mask_files import write_mask_file
from tests.ready_client import ready_client
from tests.toy import toy_waveform

OUTPUTS: dict[str, dict[str, Any]] = {
    "asr": {"kind": "text"},
    "gr": {"kind": "label", "labels": ["female", "male"]},
    "asv": {"kind": "label", "labels": ["yes", "no"]},
}


MAX_NEW_TOKENS = 12


def head_mask(family: ModelFamily, task: str) -> HeadMask:
    rng = np.random.default_rng(list(OUTPUTS).index(task))
    return HeadMask.random(18, rng, (family.identity.num_layers, family.identity.num_heads))


@torch.inference_mode()
def expected(family: ModelFamily, task: str, *waveforms: NDArray[np.float32]) -> str:
    """What the model says under the task's mask, the whole sequence computed anew for every token."""
    embeds = family.embed_audio([family.features(waveform) for waveform in waveforms])
    sequence = family.embed_prompt(embeds)
    identity = family.identity
    gate = gate_tensor(
        [head_mask(family, task)], identity.num_layers, identity.num_heads, family.device, family.dtype
    )
    ids: list[int] = []
    with gating(family.decoder, gate):
        while len(ids) < MAX_NEW_TOKENS:
            hidden = family.decoder(inputs_embeds=sequence[None]).last_hidden_state[0, -1]
            token = int(family.lm_head(hidden).argmax())
            if token in family.eos_token_ids:
                break
            ids.append(token)
            embedding = family.decoder.get_input_embeddings()(torch.tensor([token]))
            sequence = torch.cat([sequence, embedding])
    return family.decode_tokens(ids)


@pytest.fixture(scope="module")
def client(
    toy_checkpoint: Path, toy_family: ModelFamily, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    masks_dir = tmp_path_factory.mktemp("masks")
    for name, output in OUTPUTS.items():
        write_mask_file(
            masks_dir,
            name,
            toy_family.identity,
            head_mask(toy_family, name),
            output=output,
            max_new_tokens=MAX_NEW_TOKENS,
            num_audios=2 if name == "asv" else 1,
        )
    app = create_app(Settings(model=str(toy_checkpoint), masks_dir=masks_dir, max_slots=2))
    with ready_client(app) as client:
        yield client


def recording(seed: int, file_format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, sound(seed), 16_000, format=file_format, subtype="PCM_16")
    return buffer.getvalue()


def sound(seed: int) -> NDArray[np.float32]:
    """A waveform that 16 bits hold exactly."""
    return (np.round(toy_waveform(0.8, seed) * 2**15) / 2**15).astype(np.float32)


def answer(client: TestClient, task: str, seed: int = 0) -> dict[str, Any]:
    response = client.post(f"/tasks/{task}", files={"file": recording(seed)})
    assert response.status_code == 200
    content: dict[str, Any] = response.json()
    return content


def test_an_answer_is_the_models_under_the_tasks_mask(client: TestClient, toy_family: ModelFamily) -> None:
    texts = {(task, seed): answer(client, task, seed)["text"] for task in ("asr", "gr") for seed in range(4)}
    assert texts == {(task, seed): expected(toy_family, task, sound(seed)) for task, seed in texts}
    assert texts["asr", 0] != texts["gr", 0]


def test_an_answer_counts_its_tokens_and_its_time(client: TestClient) -> None:
    asr = answer(client, "asr")
    assert asr["audio"] == {"duration_s": 0.8, "truncated": False}
    assert asr["usage"]["audio_tokens"] == 20  # 25 a second
    assert 0 < asr["usage"]["output_tokens"] <= 12
    timings = asr["timings_ms"]
    stages = sum(timings[stage] for stage in ("audio", "queue", "encoder", "prefill", "decode"))
    assert timings["total"] == pytest.approx(stages, abs=0.01)


def test_several_tasks_on_one_upload_are_answered_as_each_alone(client: TestClient) -> None:
    response = client.post("/tasks?tasks=gr,asr", files={"file": recording(0)})
    assert response.status_code == 200
    texts = {name: result["text"] for name, result in response.json()["results"].items()}
    assert texts == {name: answer(client, name)["text"] for name in ("gr", "asr")}


def test_scores_of_a_label_task_come_only_when_asked_for(client: TestClient) -> None:
    plain = answer(client, "gr")["result"]
    response = client.post("/tasks?tasks=gr,asr&scores=true", files={"file": recording(0)})
    results = {name: task["result"] for name, task in response.json()["results"].items()}
    scores = results["gr"].pop("scores")
    assert results == {"gr": plain, "asr": answer(client, "asr")["result"]}
    assert list(scores) == ["female", "male"]
    assert sum(scores.values()) == pytest.approx(1.0, abs=1e-4)
    assert client.post("/tasks/gr?scores=maybe", files={"file": recording(0)}).status_code == 422


def test_the_same_sound_in_another_format_has_the_same_answer(client: TestClient) -> None:
    flac = client.post(
        "/tasks/asr", content=recording(0, "FLAC"), headers={"Content-Type": "audio/flac"}
    ).json()
    assert flac["text"] == answer(client, "asr")["text"]


def test_a_pair_task_hears_both_recordings_in_order(client: TestClient, toy_family: ModelFamily) -> None:
    for seeds in ((0, 1), (1, 0), (2, 3), (3, 2)):
        response = client.post("/tasks/asv", files=[("file", recording(seed)) for seed in seeds])
        assert response.status_code == 200
        assert response.json()["usage"]["audio_tokens"] == 40
        assert response.json()["text"] == expected(toy_family, "asv", *map(sound, seeds))


def test_every_stage_is_measured(client: TestClient) -> None:
    answer(client, "asr")
    lines = client.get("/metrics").text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    for stage in ("audio_decoding", "queue", "encoder", "prefill", "decode", "decode_step"):
        assert float(samples[f"ahamask_{stage}_seconds_count"]) > 0
    assert float(samples['ahamask_output_tokens_total{task="asr"}']) > 0
    assert float(samples['ahamask_active_heads{task="asr"}']) == 18
    assert (samples["ahamask_waiting"], samples["ahamask_running"]) == ("0.0", "0.0")
    assert any(name.startswith("ahamask_model_info{") for name in samples)
