"""The engine and the command line with models that are quantised, or spread over memory and disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from lalm.errors import ModelError
from lalm.families import load_family
from lalm.families.placement import layers_and_rest
from lalm.family import ModelFamily
from service.inference.request import EngineRequest
from tests.command_line import Cli
from tests.engine_support import make_request, make_row, random_mask, reference, running_engine
from tests.mask_files import mask_file
from tests.salmonn_toy import INSTRUCTION, MODEL_FILE, waveform
from tests.toy import toy_waveform, write_toy_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed") / "toy"
    return write_toy_checkpoint(folder, hidden_size=128, num_kv_heads=8)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> ModelFamily:
    return load_family(checkpoint)


def tokens(family: ModelFamily, requests: list[EngineRequest]) -> list[list[list[int]]]:
    async def ask() -> list[list[list[int]]]:
        results = await asyncio.gather(*(engine.submit(request) for request in requests))
        return [[row.token_ids for row in result.rows] for result in results]

    with running_engine(family, max_slots=4) as engine:
        return asyncio.run(ask())


def test_layers_on_disk_give_the_tokens_of_the_plain_model(checkpoint: Path, plain: ModelFamily) -> None:
    layers, rest = layers_and_rest(plain.model)
    device_map = {**dict.fromkeys([*layers, *rest], "cpu"), layers[1]: "disk", layers[2]: "disk"}
    family = load_family(checkpoint, device_map=json.dumps(device_map))
    requests = [
        make_request(plain, 1.2, make_row(random_mask(plain, 1), n=8), make_row(None, n=6), seed=1),
        make_request(plain, 0.4, make_row(random_mask(plain, 2), n=8), seed=2),
    ]
    expected = [[reference(plain, request, row) for row in request.rows] for request in requests]
    assert tokens(family, requests) == expected


@pytest.mark.parametrize(
    "on_disk",
    [
        ["model.audio_tower", "model.multi_modal_projector"],
        ["model.language_model.embed_tokens", "lm_head"],
    ],
)
def test_any_part_may_be_on_disk(checkpoint: Path, plain: ModelFamily, on_disk: list[str]) -> None:
    layers, rest = layers_and_rest(plain.model)
    device_map = {**dict.fromkeys([*layers, *rest], "cpu"), **dict.fromkeys(on_disk, "disk")}
    family = load_family(checkpoint, device_map=json.dumps(device_map))
    for name in on_disk:
        assert all(weight.is_meta for weight in family.model.get_submodule(name).parameters())
    requests = [make_request(plain, 1.2, make_row(random_mask(plain, 1), n=8), make_row(None, n=6), seed=1)]
    expected = [[reference(plain, request, row) for row in request.rows] for request in requests]
    assert tokens(family, requests) == expected


def test_encoder_and_decoder_may_be_on_two_devices(checkpoint: Path, plain: ModelFamily) -> None:
    """No second device is at hand: the decoder is on `meta`, which computes nothing but tells where."""
    family: Any = load_family(checkpoint)
    family.decoder.embed_tokens.to("meta")
    family.decoder.embed_tokens._hf_hook = SimpleNamespace(execution_device="meta")
    clip = make_request(plain, 1.0, make_row(None)).audio[0]
    (audio,) = family.embed_audio([clip])
    assert audio.device.type == family.device.type == "meta"
    assert family.embed_prompt([audio]).device.type == "meta"


@pytest.fixture(scope="module")
def salmonn() -> ModelFamily:
    return load_family(MODEL_FILE)


def salmonn_map(salmonn: ModelFamily, *on_disk: str) -> str:
    """Every module of its decoder in memory but those named."""
    layers, rest = layers_and_rest(salmonn.model)
    parts = [
        f"{layer}.{part}"
        for layer in layers
        for part, _ in salmonn.model.get_submodule(layer).named_children()
    ]
    return json.dumps({**dict.fromkeys([*parts, *rest], "cpu"), **dict.fromkeys(on_disk, "disk")})


@pytest.mark.parametrize(
    "on_disk",
    [
        [f"model.layers.{layer}.mlp" for layer in range(4)],
        ["model.embed_tokens"],
        ["model.embed_tokens", "model.layers.1.mlp", "lm_head"],
    ],
)
def test_salmonn_partly_on_disk_gives_the_tokens_of_the_plain_model(
    salmonn: ModelFamily, on_disk: list[str]
) -> None:
    family = load_family(MODEL_FILE, device_map=salmonn_map(salmonn, *on_disk))
    for name in on_disk:
        assert all(weight.is_meta for weight in family.model.get_submodule(name).parameters())
    assert family.device.type == "cpu"
    clip = salmonn.features(waveform(1))
    (expected,), (audio,) = salmonn.embed_audio([clip]), family.embed_audio([clip])
    assert torch.equal(audio, expected)
    rows = [make_row(random_mask(salmonn, 1), n=8), make_row(None, instruction=INSTRUCTION, n=6)]
    request = EngineRequest("it", [clip], rows)
    assert tokens(family, [request]) == [[reference(salmonn, request, row) for row in rows]]


@pytest.mark.parametrize("on_disk", ["model.layers.2", "model.layers.2.self_attn"])
def test_salmonns_attention_stays_in_memory(salmonn: ModelFamily, on_disk: str) -> None:
    device_map = json.loads(salmonn_map(salmonn, on_disk))
    placed = {name: device for name, device in device_map.items() if not name.startswith(f"{on_disk}.")}
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn\.q_proj\.weight, .*v_proj\) has to stay"):
        load_family(MODEL_FILE, device_map=json.dumps(placed))


def test_salmonn_hears_on_a_device_of_its_own(salmonn: ModelFamily) -> None:
    """No second device is at hand: the decoder is on `meta`, which computes nothing but tells where."""
    family: Any = load_family(MODEL_FILE)
    family.decoder.embed_tokens.to("meta")
    family.decoder.embed_tokens._hf_hook = SimpleNamespace(execution_device="meta")
    (audio,) = family.embed_audio([salmonn.features(waveform(0))])
    assert family.hearing.device.type == "cpu"
    assert audio.device.type == family.device.type == "meta"
    assert family.embed_prompt([audio]).device.type == "meta"


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_mask_of_the_model_is_served_by_the_quantised_one(
    cli: Cli, checkpoint: Path, plain: ModelFamily, tmp_path: Path, quantize: str
) -> None:
    mask_file("asr", random_mask(plain, 1), plain.identity).save(tmp_path / "masks" / "asr.json")
    recording = tmp_path / "a.wav"
    soundfile.write(recording, toy_waveform(0.8), 16_000)
    options = ("--model", checkpoint, "--masks", tmp_path / "masks", "--quantize", quantize, "--json")
    code, out, err = cli("run", "asr", recording, *options)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["task"] == "asr"
    assert answer["format_ok"] is True
