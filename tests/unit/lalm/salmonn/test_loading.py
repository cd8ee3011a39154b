"""What a SALMONN is loaded from: the model file, the weight files, and every key in them."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from lalm.errors import EmptyAudioError, ModelError
from lalm.families import identify, load_family
from lalm.families.model_file import ModelFile
from lalm.families.salmonn import sources
from lalm.families.salmonn.checkpoint import read_pickle
from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from tests.salmonn_toy import DATA, MODEL_FILE, head_mask_of, waveform

DOCUMENTED = Path(__file__).parents[4] / "docs" / "salmonn-13b.toml"

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return load_family(MODEL_FILE)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The model file of a copy to break."""
    ignored = shutil.ignore_patterns("audio", "expected.*")
    return Path(shutil.copytree(DATA, tmp_path / "copy", ignore=ignored)) / MODEL_FILE.name


def edit_pickle(path: Path, edit: Edit) -> None:
    content = torch.load(path, weights_only=True)
    edit(content.get("model", content))
    torch.save(content, path)


def write_keys(path: Path, **changes: Any) -> Path:
    """The model file as JSON, with other keys; a key that is None is left out."""
    keys = {
        "family": "salmonn",
        "vicuna": "llama",
        "whisper": "whisper",
        "beats": "beats.pt",
        "salmonn": "salmonn_v1.pth",
        "qformer_heads": 4,
    } | changes
    other = path.with_suffix(".json")
    other.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))
    return other


def assert_refused(match: str, path: Path, **options: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_family(path, **options)
    assert "\n" not in str(caught.value)


def test_identity(family: ModelFamily) -> None:
    identity = family.identity
    assert (identity.family, identity.name) == ("salmonn", "toy-salmonn")
    assert (identity.num_layers, identity.num_heads) == (4, 6)
    assert family.max_audio_s == 30.0
    assert family.eos_token_ids == {2}
    assert identify(MODEL_FILE) == identity


def test_the_documented_model_file_is_one() -> None:
    keys = sources.SalmonnFile.parse(ModelFile.load(DOCUMENTED))
    assert keys.name == "SALMONN-13B"
    page = DOCUMENTED.with_name("salmonn.md").read_text()
    shown = next(block for block in page.split("```toml\n")[1:] if block.startswith("family"))
    assert sources.SalmonnFile.model_validate(tomllib.loads(shown.split("```")[0])) == keys


def test_a_model_file_in_json_with_a_name_of_its_own(toy: Path, family: ModelFamily) -> None:
    other = load_family(write_keys(toy, name="SALMONN-0B"))
    assert other.identity == family.identity.model_copy(update={"name": "SALMONN-0B"})
    assert load_family(toy, name="told").identity.name == "told"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"beats": None}, "key 'beats' is missing"),
        ({"wisper": "whisper"}, "unknown key 'wisper'"),
        ({"lora_alpha": 0}, "lora_alpha: .* greater than or equal to 1"),
        ({"name": "a/b"}, "name: "),
        ({"vicuna": "absent"}, "absent: neither a folder .* nor a hub id"),
        ({"beats": "absent.pt"}, r"absent\.pt: neither a file .* owner/name/file"),
        ({"qformer_heads": 5}, "a Q-Former of width 48 cannot have 5 heads"),
    ],
)
def test_a_model_file_that_does_not_fit_is_refused(toy: Path, changes: dict[str, Any], match: str) -> None:
    assert_refused(match, write_keys(toy, **changes))


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    assert_refused(r"model\.toml: cannot be read: No such file", path)
    path.write_text("family =")
    assert_refused("not a model file", path)
    path.write_text("vicuna = 'x'")
    assert_refused("there is no key family", path)
    path.write_text("family = 'salmon'")
    assert_refused("family 'salmon' is not supported; supported: salmonn", path)
    assert_refused("a model file has no revision 'v1'", path, revision="v1")


@pytest.mark.parametrize("package", ["peft", "sentencepiece"])
def test_without_the_extra_a_model_is_told_but_not_loaded(
    package: str, family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("load", "decoder", "tokenizer"):
        monkeypatch.delitem(sys.modules, f"lalm.families.salmonn.{module}", raising=False)
    assert identify(MODEL_FILE) == family.identity
    assert_refused(rf"SALMONN needs {package}: pip install 'ahamask\[salmonn\]'", MODEL_FILE)


def test_hub_ids_are_fetched_in_the_format_they_have(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def snapshot(where: str, *, allow_patterns: list[str]) -> str:
        asked.append((where, allow_patterns[-1]))
        return str(toy.parent / where.split("/")[1])

    def file(where: str, name: str) -> str:
        asked.append((where, name))
        return str(toy.parent / name)

    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    monkeypatch.setattr(sources, "hf_hub_download", file)
    hub = {
        "vicuna": "lmsys/llama",
        "whisper": "openai/whisper",
        "salmonn": "tsinghua-ee/SALMONN/salmonn_v1.pth",
    }
    load_family(write_keys(toy, **hub))
    folders = [
        (where, kind) for where in ("lmsys/llama", "openai/whisper") for kind in ("*.safetensors", "*.bin")
    ]
    assert asked == [*folders, ("tsinghua-ee/SALMONN", "salmonn_v1.pth")]


def test_a_part_that_cannot_be_had_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(sources, "snapshot_download", fetch)
    monkeypatch.setattr(sources, "hf_hub_download", fetch)
    assert_refused(
        "^who/what: no such folder in .* nor on the hub: no network at all",
        write_keys(toy, whisper="who/what"),
    )
    assert_refused(
        "^a/b/c.pt: no such file in .* nor on the hub: no network at all", write_keys(toy, beats="a/b/c.pt")
    )


def delete(name: str) -> Edit:
    return lambda tensors: tensors.__delitem__(name)


def rename(name: str) -> Edit:
    return lambda tensors: tensors.update({f"{name}_x": tensors.pop(name)})


def transpose(name: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name].mT.contiguous()})


LORA_A = "llama_model.base_model.model.model.layers.2.self_attn.v_proj.lora_A.default.weight"


@pytest.mark.parametrize(
    ("file", "edit", "match"),
    [
        ("llama/pytorch_model.bin", delete("model.norm.weight"), r"missing: model\.norm\.weight$"),
        (
            "llama/pytorch_model.bin",
            rename("lm_head.weight"),
            r"missing: lm_head\.weight; 1 .*unknown: lm_head",
        ),
        (
            "whisper/pytorch_model.bin",
            delete("model.encoder.conv1.bias"),
            r"1 tensors are missing: conv1\.bias",
        ),
        (
            "whisper/pytorch_model.bin",
            rename("model.encoder.layers.1.fc1.bias"),
            r"unknown: layers\.1\.fc1\.bias_x",
        ),
        ("beats.pt", delete("encoder.pos_conv.0.weight_g"), r"missing: encoder\.pos_conv\.0\.weight"),
        (
            "beats.pt",
            rename("encoder.layers.0.self_attn.grep_a"),
            r"missing: .*grep_a; 1 .*unknown: .*grep_a_x",
        ),
        (
            "beats.pt",
            transpose("encoder.layers.0.fc1.weight"),
            r"fc1\.weight has shape \[32, 64\], needed is",
        ),
        ("salmonn_v1.pth", delete("ln_audio.bias"), r"1 tensors are missing: ln_audio\.bias"),
        ("salmonn_v1.pth", rename("speech_llama_proj.bias"), r"unknown: speech_llama_proj\.bias_x"),
        ("salmonn_v1.pth", delete("speech_query_tokens"), "not a SALMONN checkpoint with a Q-Former"),
        ("salmonn_v1.pth", delete(LORA_A), r"missing: .*layers\.2\.self_attn\.v_proj\.lora_A\.weight"),
        ("salmonn_v1.pth", rename(LORA_A), r"unknown: .*layers\.2\.self_attn\.v_proj\.lora_A"),
        ("salmonn_v1.pth", transpose(LORA_A), "ranks"),
        (
            "salmonn_v1.pth",
            transpose(LORA_A.replace("lora_A", "lora_B")),
            r"lora_B\.weight has shape \[8, 96\]",
        ),
        (
            "llama/pytorch_model.bin",
            transpose("model.layers.1.mlp.up_proj.weight"),
            r"up_proj\.weight has shape",
        ),
    ],
)
def test_every_key_is_accounted_for(toy: Path, file: str, edit: Edit, match: str) -> None:
    edit_pickle(toy.parent / file, edit)
    assert_refused(match, toy)


@pytest.mark.parametrize("file", ["llama/pytorch_model.bin", "beats.pt", "salmonn_v1.pth"])
def test_files_that_run_code_or_are_cut_off_are_refused(toy: Path, file: str) -> None:
    path = toy.parent / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused("cannot be read as weights", toy)
    torch.save({"cfg": {}, "model": {"x": shutil.rmtree}}, path)
    assert_refused("cannot be read as weights", toy)
    torch.save({"model": {"x": 1}}, path)
    assert_refused("not a (mapping from names to tensors|BEATs checkpoint)", toy)


def test_a_beats_that_is_not_built_here_is_refused(toy: Path) -> None:
    content = torch.load(toy.parent / "beats.pt", weights_only=True)
    content["cfg"]["layer_norm_first"] = True
    torch.save(content, toy.parent / "beats.pt")
    assert_refused("BEATs with layer_norm_first = True is not supported", toy)


def test_parts_that_were_not_made_for_each_other_are_refused(toy: Path) -> None:
    edit_pickle(
        toy.parent / "salmonn_v1.pth",
        lambda tensors: tensors.update(
            {
                "speech_llama_proj.weight": torch.zeros(64, 48),
                "speech_llama_proj.bias": torch.zeros(64),
            }
        ),
    )
    assert_refused("made for a Vicuna of width 64, the one given has 96", toy)


def test_the_features_must_be_the_encoders(toy: Path) -> None:
    path = toy.parent / "whisper" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"feature_size": 128}))
    assert_refused("feature_size is 128, the encoder needs 80", toy)


def resave(folder: Path, num_files: int) -> None:
    """The weights of a folder as safetensors, split over files with an index."""
    tensors: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    names = list(tensors)
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: tensors[name].clone() for name in names[number::num_files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").unlink()


def test_the_same_weights_in_other_files_are_the_same_model(toy: Path, family: ModelFamily) -> None:
    resave(toy.parent / "llama", 3)
    resave(toy.parent / "whisper", 2)
    edit_pickle(toy.parent / "salmonn_v1.pth", delete("speech_Qformer.bert.embeddings.position_ids"))
    other = load_family(toy)
    assert other.identity == family.identity
    features = family.features(waveform(1))
    assert torch.equal(other.embed_audio([features])[0], family.embed_audio([features])[0])
    (toy.parent / "llama" / "model-00002-of-00003.safetensors").unlink()
    assert_refused("weight files are missing: model-00002-of-00003.safetensors", toy)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("llama/pytorch_model.bin", "model.layers.3.mlp.up_proj.weight"),
        ("whisper/pytorch_model.bin", "model.encoder.layers.0.fc2.bias"),
        ("beats.pt", "encoder.pos_conv.0.weight_g"),
        ("salmonn_v1.pth", "ln_speech.weight"),
        ("salmonn_v1.pth", LORA_A),
    ],
)
def test_other_weights_are_another_model(toy: Path, family: ModelFamily, file: str, name: str) -> None:
    edit_pickle(toy.parent / file, lambda tensors: tensors.update({name: tensors[name] * 1.01}))
    assert load_family(toy).identity.fingerprint != family.identity.fingerprint


def test_weights_that_are_not_used_do_not_make_another_model(toy: Path, family: ModelFamily) -> None:
    name = "model.decoder.layers.0.fc1.bias"
    edit_pickle(toy.parent / "whisper" / "pytorch_model.bin", delete(name))
    edit_pickle(toy.parent / "beats.pt", delete("predictor.bias"))
    assert load_family(toy).identity == family.identity


def test_a_quantized_decoder_keeps_lora_beside_its_weights(family: ModelFamily) -> None:
    quantized = load_family(MODEL_FILE, quantize="int8")
    # fingerprint and audio are those of the model; its answers, nearly
    assert quantized.identity.fingerprint == family.identity.fingerprint
    features = family.features(waveform(0))
    (audio,) = quantized.embed_audio([features])
    assert torch.equal(audio, family.embed_audio([features])[0])
    prompt = family.embed_prompt([audio])[None]
    gate = gate_tensor([head_mask_of("mask")], 4, 6)
    logits = [
        each.lm_head(each.decoder(inputs_embeds=prompt, head_gate=gate).last_hidden_state).flatten()
        for each in (quantized, family)
    ]
    assert not torch.equal(*logits)
    assert torch.nn.functional.cosine_similarity(*logits, dim=0) > 0.99


def test_loading_says_what_it_loads(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lalm.families.salmonn"):
        load_family(MODEL_FILE)
    starts = [message for message in caplog.messages if message.startswith("loading ")]
    num_bytes = (DATA / "llama" / "pytorch_model.bin").stat().st_size
    assert [line.split(":")[0].removeprefix("loading ") for line in starts] == [
        "Q-Former and LoRA",
        "BEATs",
        "Whisper",
        "Vicuna",
    ]
    assert starts[-1] == f"loading Vicuna: {num_bytes:,} bytes in 1 file(s)"


def test_half_precision_stays_near(family: ModelFamily) -> None:
    half = load_family(MODEL_FILE, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    features = family.features(waveform(0))
    expected, (found,) = family.embed_audio([features])[0], half.embed_audio([features])
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.99


def test_audio_at_the_edges(family: ModelFamily) -> None:
    with pytest.raises(EmptyAudioError):
        family.features(np.zeros(0, dtype=np.float32))
    shortest = family.features(np.full(16, 0.1, dtype=np.float32))
    padded = family.features(np.pad(np.full(16, 0.1, dtype=np.float32), (0, 15_984)))
    assert torch.equal(family.embed_audio([shortest])[0], family.embed_audio([padded])[0])
    noise = np.random.default_rng(0).normal(0, 0.1, 31 * 16_000).astype(np.float32)
    longest, cut = family.features(noise), family.features(noise[: 30 * 16_000])
    assert torch.equal(longest.mel, cut.mel)
    assert torch.equal(longest.extra["fbank"], cut.extra["fbank"])
    assert torch.isfinite(family.embed_audio([longest])[0]).all()


def test_features_go_to_other_processes_without_weights(family: ModelFamily) -> None:
    pickled = pickle.dumps(family.features)
    assert len(pickled) < 500_000
    here, there = family.features(waveform(1)), pickle.loads(pickled)(waveform(1))
    assert torch.equal(here.mel, there.mel)
    assert torch.equal(here.extra["fbank"], there.extra["fbank"])


def test_prompts_that_cannot_be_made_are_refused(family: ModelFamily) -> None:
    with pytest.raises(ValueError, match="hears one audio, not 2"):
        family.prompt_segments(None, 2)
    with pytest.raises(ValueError, match="must not contain <SpeechHere>"):
        family.prompt_segments("say <SpeechHere>", 1)
    (_, braces) = family.prompt_segments("{a}", 1)
    assert family.decode_tokens(braces) == "</Speech> {a}\nASSISTANT:"


def test_pickles_of_before_torch_1_6_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"model": {"x": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(path)["model"]["x"], torch.ones(2))
