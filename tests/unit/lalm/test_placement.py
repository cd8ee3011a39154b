from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lalm.errors import ModelError
from lalm.families import load_family, placement
from lalm.families.placement import layers_and_rest, read_device_map, spread
from lalm.family import ModelFamily
from tests.toy import toy_waveform, write_toy_checkpoint

# As large as bitsandbytes' kernels for CPUs want it.
SIZES = {"hidden_size": 128, "num_kv_heads": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("placement") / "toy", **SIZES)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> ModelFamily:
    return load_family(checkpoint)


@torch.no_grad()
def hidden_states(family: ModelFamily) -> torch.Tensor:
    prompt = family.embed_prompt(family.embed_audio([family.features(toy_waveform(1.0))]), "what is said")
    output: torch.Tensor = family.decoder(inputs_embeds=prompt[None]).last_hidden_state
    return output


def num_bytes(family: ModelFamily) -> int:
    return sum(weight.nbytes for layer in family.decoder.layers for weight in layer.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(("quantize", "error", "share"), [("int8", 0.06, 0.3), ("int4", 0.3, 0.2)])
def test_the_decoder_is_quantised_and_nothing_else(
    checkpoint: Path, plain: ModelFamily, quantize: Any, error: float, share: float
) -> None:
    family = load_family(checkpoint, quantize=quantize)
    assert family.identity == plain.identity, "a head mask of the model fits it at every precision"
    assert (family.dtype, family.device.type) == (torch.float32, "cpu")
    assert num_bytes(family) < share * num_bytes(plain)
    model: Any = family.model
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.model.audio_tower.layers[0].fc1) is torch.nn.Linear
    expected, found = hidden_states(plain), hidden_states(family)
    assert 0 < (found - expected).norm() / expected.norm() < error


def test_layers_on_disk_compute_the_same(checkpoint: Path, plain: ModelFamily) -> None:
    layers, rest = layers_and_rest(plain.model)
    device_map = {**dict.fromkeys([*layers, *rest], "cpu"), layers[1]: "disk"}
    family = load_family(checkpoint, device_map=json.dumps(device_map))
    on_disk = [weight.device.type for weight in family.decoder.layers[1].parameters()]  # type: ignore[union-attr, index]
    assert set(on_disk) == {"meta"}
    assert torch.equal(hidden_states(family), hidden_states(plain))


def test_quantised_models_are_not_offloaded(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="dispatched on the CPU or the disk"):
        load_family(checkpoint, device_map='{"": "disk"}', quantize="int8")


def test_modules_are_the_layers_and_the_rest(plain: ModelFamily) -> None:
    layers, rest = layers_and_rest(plain.model)
    assert layers == [f"model.language_model.layers.{index}" for index in range(3)]
    assert {"model.audio_tower", "model.multi_modal_projector", "lm_head"} <= set(rest)
    covered = [f"{name}." for name in (*layers, *rest)]
    for name, _ in plain.model.named_parameters():
        assert sum(name.startswith(prefix) for prefix in covered) == 1, name


def test_layers_spread_by_free_memory() -> None:
    layers = [f"layers.{index}" for index in range(10)]
    sizes = {**dict.fromkeys(layers, 10), "encoder": 20}
    device_map = spread(layers, ["encoder"], sizes, {"cuda:0": 100, "cuda:1": 100})
    assert device_map["encoder"] == "cuda:0"
    assert [device_map[name] for name in layers] == ["cuda:0"] * 4 + ["cuda:1"] * 6
    device_map = spread(layers, ["encoder"], sizes, {"cuda:0": 50, "cuda:1": 50, "cuda:2": 100})
    assert [device_map[name] for name in layers] == ["cuda:0"] + ["cuda:1"] * 3 + ["cuda:2"] * 6
    assert set(spread(layers, ["encoder"], sizes, {"cuda:0": 1}).values()) == {"cuda:0"}


@pytest.mark.parametrize(
    "text", ["everywhere", "[]", "{}", '{"model": 1.5}', '{"model": true}', '{"a": null}']
)
def test_what_is_no_device_map_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="device map"):
        read_device_map(text)


def test_auto_needs_a_gpu(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="needs a GPU, and there is none"):
        load_family(checkpoint, device_map="auto")


@pytest.mark.parametrize("package", ["accelerate", "bitsandbytes"])
def test_a_missing_package_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(ModelError, match=rf"{package} is not installed; pip install 'ahamask\[quant\]'"):
        load_family(checkpoint, quantize="int8")
    load_family(checkpoint)


def test_a_map_that_misses_a_module_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_family(checkpoint, device_map='{"model.audio_tower": "cpu", "lm_head": "disk"}')


def test_loading_is_told(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lalm.families"):
        load_family(checkpoint)
    started, ended = (record.getMessage() for record in caplog.records if record.name == "lalm.families")
    assert started == f"loading {checkpoint}"
    assert ended.startswith(f"loaded {checkpoint} in ")
