"""Audio encoders that a device map offloads: to disk, or beside a device to the host's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor

from lalm.errors import ModelError
from lalm.families import load_family
from lalm.families.offload import keep_encoder_entry
from lalm.families.placement import layers_and_rest
from lalm.family import ModelFamily
from tests.toy import toy_waveform, write_toy_checkpoint
from tests.toy_hf import WRITERS

ADAPTED = "granite_speech_with_adapter"
TOYS = {"qwen2_audio": write_toy_checkpoint, **WRITERS}


@pytest.fixture(scope="module", params=sorted(TOYS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TOYS[request.param](tmp_path_factory.mktemp("offloaded") / request.param)


@pytest.fixture(scope="module")
def plain(folder: Path) -> ModelFamily:
    return load_family(folder)


@torch.no_grad()
def heard(family: ModelFamily) -> list[Tensor]:
    """Embeddings of two clips, and what the decoder makes of the first: [num_tokens, hidden] each."""
    clips = [family.features(toy_waveform(seconds, seed)) for seed, seconds in enumerate((1.0, 0.5))]
    audio = family.embed_audio(clips)
    prompt = family.embed_prompt(audio[:1], "what is said")
    return [*audio, family.decoder(inputs_embeds=prompt[None]).last_hidden_state[0]]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def outside_the_decoder(family: ModelFamily) -> dict[str, Any]:
    """Encoder and projector: the largest modules that hold them, by name."""
    decoder = {*family.decoder.modules(), family.lm_head}
    _, rest = layers_and_rest(family.model)
    modules = {name: family.model.get_submodule(name) for name in rest}
    return {name: module for name, module in modules.items() if module not in decoder}


def test_encoder_and_projector_on_disk(folder: Path, plain: ModelFamily) -> None:
    layers, rest = layers_and_rest(plain.model)
    on_disk = outside_the_decoder(plain)
    assert len(on_disk) == 2
    device_map = {**dict.fromkeys([*layers, *rest], "cpu"), **dict.fromkeys(on_disk, "disk")}
    family = load_family(folder, device_map=json.dumps(device_map))
    weights = [weight for module in outside_the_decoder(family).values() for weight in module.parameters()]
    assert sum(weight.is_meta for weight in weights) > 0.8 * len(weights)
    assert not any(weight.is_meta for weight in family.decoder.parameters())
    assert_equal(heard(family), heard(plain))


@pytest.mark.parametrize("folder", sorted(TOYS.keys() - {ADAPTED}), indirect=True)
def test_everything_on_disk(folder: Path, plain: ModelFamily) -> None:
    family = load_family(folder, device_map='{"": "disk"}')
    assert all(weight.is_meta for weight in family.decoder.parameters())
    assert_equal(heard(family), heard(plain))


def test_everything_in_memory_beside_the_device(folder: Path, plain: ModelFamily) -> None:
    """As `cpu` in a map beside a GPU; none is at hand, so that both are the CPU."""
    family: Any = load_family(folder)
    cpu_offload(family.model, execution_device=torch.device("cpu"))
    if folder.name != "qwen2_audio":  # a family of its own, which calls each module it uses
        keep_encoder_entry(family.model)
    assert sum(weight.is_meta for weight in family.model.parameters()) > 20
    assert_equal(heard(family), heard(plain))


@pytest.mark.parametrize("folder", [ADAPTED], indirect=True)
def test_what_an_adapter_is_merged_into_stays_in_memory(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"offloads .*\.q_proj\.weight, .*v_proj\) has to stay"):
        load_family(folder, device_map='{"": "disk"}')
