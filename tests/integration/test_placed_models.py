"""The engine and the command line with models that are quantised, or spread over memory and disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import soundfile

from lalm.families import load_family
from lalm.families.placement import layers_and_rest
from lalm.family import ModelFamily
from service.inference.request import EngineRequest
from tests.command_line import Cli
from tests.engine_support import make_request, make_row, random_mask, reference, running_engine
from tests.mask_files import mask_file
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
