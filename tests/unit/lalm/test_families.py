from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from lalm import families, tiny
from lalm.errors import ModelError
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.fingerprint import NUM_SAMPLED_ROWS, WHOLE_TENSOR_BYTES, fingerprint
from tests.toy import toy_waveform, write_toy_checkpoint

Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def folder(toy_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the toy checkpoint to break."""
    return Path(shutil.copytree(toy_checkpoint, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_refused(match: str, path_or_id: Path | str, **options: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_family(path_or_id, **options)
    assert "\n" not in str(caught.value)


def test_identity_names_the_folder_or_what_it_is_told(toy_checkpoint: Path) -> None:
    identity = load_family(toy_checkpoint).identity
    assert (identity.family, identity.name, identity.num_layers, identity.num_heads) == (
        "qwen2_audio",
        "toy-lalm",
        3,
        8,
    )
    assert load_family(str(toy_checkpoint), name="mine").identity.name == "mine"


def test_the_embedded_folder_goes_by_its_own_name(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = Path(shutil.copytree(toy_checkpoint, tmp_path / "checkpoint"))
    monkeypatch.setattr(tiny, "CHECKPOINT", embedded)
    assert load_family(embedded).identity.name == "tiny-lalm"


def test_the_config_as_older_releases_wrote_it_is_the_same_model(
    folder: Path, toy_family: ModelFamily
) -> None:
    """As on the hub: other names for some keys, defaults left out, the chat template not in a file."""
    config = json.loads((folder / "config.json").read_text())
    text_config = config["text_config"]
    rope_theta = text_config.pop("rope_parameters")["rope_theta"]
    for key in ("layer_types", "hidden_act", "attention_dropout", "tie_word_embeddings", "sliding_window"):
        del text_config[key]
    text_config |= {"rope_theta": rope_theta, "sliding_window": 32768, "torch_dtype": "bfloat16"}
    del config["dtype"], config["audio_config"]["model_type"]
    config |= {"torch_dtype": "bfloat16", "ignore_index": -100, "transformers_version": "4.38.1"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink()
    family = load_family(folder)
    assert family.identity.fingerprint == toy_family.identity.fingerprint
    assert family.prompt_segments("what is said?", 2) == toy_family.prompt_segments("what is said?", 2)
    features = family.features(toy_waveform(1.0))
    assert torch.equal(family.embed_audio([features])[0], toy_family.embed_audio([features])[0])


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, toy_checkpoint: Path) -> None:
    assert_refused("neither a folder nor a hub id", tmp_path / "absent")
    assert_refused("not a model file", toy_checkpoint / "config.json")
    assert_refused(r"config\.json: cannot be read", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert_refused("not the configuration of a model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    assert_refused("'whisper' is not supported; supported: qwen2_audio", tmp_path)


def test_options_that_cannot_be_met_are_refused(toy_checkpoint: Path) -> None:
    assert_refused("a local folder has no revision 'main'", toy_checkpoint, revision="main")
    assert_refused("dtype 'int8' is not one of float32, bfloat16, float16", toy_checkpoint, dtype="int8")
    assert_refused("device 'warp' is not available", toy_checkpoint, device="warp")


def test_a_hub_id_is_resolved_at_its_revision(toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        assert "*.safetensors" in allow_patterns
        return str(toy_checkpoint)

    monkeypatch.setattr(families, "snapshot_download", snapshot)
    family = load_family("Qwen/Qwen2-Audio-7B", revision="abc123")
    assert asked == [("Qwen/Qwen2-Audio-7B", "abc123")]
    assert family.identity.name == "Qwen2-Audio-7B"


def test_a_hub_id_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repo_id: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(families, "snapshot_download", snapshot)
    assert_refused("no such model at revision 'v9' on the hub: no network at all", "who/what", revision="v9")


def test_damaged_checkpoints_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert_refused("cannot be loaded", folder)
    weights.unlink()
    assert_refused("cannot be loaded", folder)


def test_a_missing_tensor_is_refused_not_invented(folder: Path) -> None:
    name = "language_model.model.layers.1.self_attn.o_proj.weight"
    edit_weights(folder, lambda tensors: tensors.__delitem__(name))
    assert_refused("1 tensors are missing, .*o_proj", folder)


def test_a_missing_processor_is_refused(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    assert_refused("cannot be loaded", folder)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [("feature_size", 80, "feature_size is 80"), ("chunk_length", 10, "nb_max_frames is 1000")],
)
def test_features_of_another_encoder_are_refused(folder: Path, key: str, value: int, found: str) -> None:
    edit_json(folder / "preprocessor_config.json", **{key: value})
    assert_refused(f"{found}, the encoder needs", folder)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        "audio_tower.layers.1.fc1.bias",
    ],
)
def test_one_changed_tensor_changes_the_fingerprint(folder: Path, toy_family: ModelFamily, name: str) -> None:
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name] * 1.01}))
    assert load_family(folder).identity.fingerprint != toy_family.identity.fingerprint


def test_the_same_config_with_other_weights_has_another_fingerprint(
    tmp_path: Path, toy_checkpoint: Path
) -> None:
    """Base and Instruct share a config."""
    other = write_toy_checkpoint(tmp_path / "instruct", seed=1)
    assert (other / "config.json").read_text() == (toy_checkpoint / "config.json").read_text()
    assert load_family(other).identity.fingerprint != load_family(toy_checkpoint).identity.fingerprint


def test_the_fingerprint_stays_over_copies_splits_and_saving(
    folder: Path, tmp_path: Path, toy_family: ModelFamily
) -> None:
    assert load_family(folder).identity == toy_family.identity.model_copy(update={"name": "copy"})
    load_family(folder, dtype="float16").model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert load_family(folder).identity.fingerprint == toy_family.identity.fingerprint


def test_the_config_takes_part_in_the_fingerprint(folder: Path, toy_family: ModelFamily) -> None:
    text_config = json.loads((folder / "config.json").read_text())["text_config"]
    text_config["rope_parameters"]["rope_theta"] = 500_000.0
    edit_json(folder / "config.json", text_config=text_config)
    assert load_family(folder).identity.fingerprint != toy_family.identity.fingerprint


def test_large_tensors_are_sampled_as_documented(tmp_path: Path) -> None:
    num_rows = 151  # the sampled rows: 0, 10, 20, … 150
    weight = torch.zeros(num_rows, WHOLE_TENSOR_BYTES // 4 // 100)
    scalar = torch.tensor(1.0)
    assert (num_rows - 1) % (NUM_SAMPLED_ROWS - 1) == 0

    def digest(row: int | None = None, scale: float = 1.0) -> str:
        changed = weight.clone()
        if row is not None:
            changed[row, 7] = 1.0
        save_file({"weight": changed, "scale": scalar * scale}, tmp_path / "model.safetensors")
        return fingerprint(tmp_path, {})

    plain = digest()
    assert plain == digest()
    assert plain != digest(scale=2.0)
    assert all(digest(row) != plain for row in (0, 10, 140, 150))
    assert digest(5) == plain, "between the samples nothing is read"


def test_an_adapter_beside_split_weights_takes_part(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    plain = fingerprint(tmp_path, {})
    save_file({"lora_A": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert fingerprint(tmp_path, {}) != plain


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no safetensors file"):
        fingerprint(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="the weights cannot be read"):
        fingerprint(tmp_path, {})
