"""A checkpoint without its silenced heads is the masked model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AttentionInterface, DynamicCache

from lalm import tiny
from lalm.audio import AudioLimits, decode_audio
from lalm.errors import HeadMaskError, ModelError
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.pruned import compile_task, prune_checkpoint, weight_bytes
from lalm.pruned_attention import HeadLayout
from lalm.task import TaskSpec
from tests.spoken_samples import SPOKEN
from tests.toy import toy_waveform
from training.generation import generate

REPOSITORY = Path(__file__).resolve().parents[3]
SHIPPED = sorted((REPOSITORY / "masks" / tiny.NAME).glob("*.json"))
# layers of the toy model: no head at all; one key-value head and not the other; groups of unequal size
RAGGED = HeadMask.from_strings(["00000000", "00000110", "01110100"])


@pytest.fixture(scope="module")
def tiny_family() -> ModelFamily:
    return load_family(tiny.CHECKPOINT)


@pytest.fixture(scope="module")
def sample_prompts(tiny_family: ModelFamily) -> list[torch.Tensor]:
    features = [tiny_family.features(decode_audio(path.read_bytes(), AudioLimits())) for path in SPOKEN]
    return [tiny_family.embed_prompt([embeds]) for embeds in tiny_family.embed_audio(features)]


@pytest.fixture(scope="module")
def ragged(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "ragged"
    prune_checkpoint(toy_checkpoint, RAGGED, out)
    return out


def prompt_of(family: ModelFamily, seconds: float, seed: int) -> torch.Tensor:
    return family.embed_prompt(family.embed_audio([family.features(toy_waveform(seconds, seed))]))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_mask_gives_the_same_tokens_pruned(
    path: Path, tiny_family: ModelFamily, sample_prompts: list[torch.Tensor], tmp_path: Path
) -> None:
    mask_file, out = MaskFile.load(path), tmp_path / "pruned"
    sizes = compile_task(tiny.CHECKPOINT, mask_file, out)
    pruned, kept = load_family(out), MaskFile.load(out / "masks" / path.name)
    limit = mask_file.task.max_new_tokens
    expected = generate(tiny_family, sample_prompts, head_mask=mask_file.head_mask, max_new_tokens=limit)
    assert generate(pruned, sample_prompts, head_mask=None, max_new_tokens=limit) == expected
    assert generate(pruned, sample_prompts, head_mask=kept.head_mask, max_new_tokens=limit) == expected
    assert all(expected)
    kept.check_model(pruned.identity, out)
    assert sizes.num_active == mask_file.head_mask.num_active < sizes.num_heads
    assert sizes.num_heads_kept == kept.head_mask.num_active == sizes.num_kv_heads_kept  # copies merged
    assert sizes.weight_bytes_kept == weight_bytes(out) < sizes.weight_bytes / 2


def test_copies_are_one_head_with_the_columns_of_the_active_ones(tmp_path: Path) -> None:
    """The embedded model: 16 neighbours have one query."""
    active = np.zeros((4, 1024 // 4), dtype=bool)
    active[0, [3, 5, 40]] = active[2, 255] = True
    sizes = prune_checkpoint(tiny.CHECKPOINT, HeadMask(active), tmp_path / "pruned")
    assert (sizes.num_active, sizes.num_heads_kept, sizes.num_kv_heads_kept) == (4, 3, 3)
    whole = load_file(tiny.CHECKPOINT / "model.safetensors")
    pruned = load_file(tmp_path / "pruned" / "model.safetensors")
    name = next(n for n in whole if "language_model" in n and n.endswith("layers.0.self_attn.o_proj.weight"))
    columns = whole[name].view(256, 256, 16)
    assert torch.equal(pruned[name], torch.cat([columns[:, 3] + columns[:, 5], columns[:, 40]], dim=1))
    name = name.replace("o_proj", "q_proj")
    assert torch.equal(pruned[name], whole[name].view(256, 16, 256)[[3, 40]].flatten(0, 1))


def test_any_number_of_heads_a_layer(toy_family: ModelFamily, ragged: Path) -> None:
    pruned = load_family(ragged)
    prompts = [prompt_of(toy_family, seconds, seed) for seed, seconds in enumerate((0.4, 1.1, 0.7))]
    gate = gate_tensor([RAGGED], 3, 8)
    with torch.no_grad():
        for prompt in prompts:
            masked = toy_family.decoder(inputs_embeds=prompt[None], head_gate=gate).last_hidden_state
            plain = pruned.decoder(inputs_embeds=prompt[None]).last_hidden_state
            torch.testing.assert_close(plain, masked, rtol=1e-4, atol=1e-4)
    expected = generate(toy_family, prompts, head_mask=RAGGED, max_new_tokens=12)
    assert generate(pruned, prompts, head_mask=None, max_new_tokens=12) == expected
    assert generate(pruned, prompts, head_mask=RAGGED, max_new_tokens=12) == expected
    assert len({tuple(ids) for ids in expected}) == 3


def test_a_head_mask_still_acts_on_the_heads_that_are_left(toy_family: ModelFamily, ragged: Path) -> None:
    pruned = load_family(ragged)
    fewer = HeadMask.from_strings(["11111111", "00000010", "00110000"])
    both = HeadMask(fewer.heads & RAGGED.heads)
    prompt = prompt_of(toy_family, 0.6, 3)[None]
    with torch.no_grad():
        left = pruned.decoder(inputs_embeds=prompt, head_gate=gate_tensor([fewer], 3, 8)).last_hidden_state
        masked = toy_family.decoder(inputs_embeds=prompt, head_gate=gate_tensor([both], 3, 8))
    torch.testing.assert_close(left, masked.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_weights_and_cache_shrink(toy_family: ModelFamily, ragged: Path) -> None:
    pruned = load_family(ragged)
    with safe_open(ragged / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_slice(name).get_dtype() for name in shapes}
    assert dtypes == {"F16"}  # as it was stored
    attention = {
        name.split("layers.")[1]: shape
        for name, shape in shapes.items()
        if "language" in name and "attn" in name
    }
    assert attention["1.self_attn.q_proj.weight"] == [16, 64]
    assert attention["1.self_attn.k_proj.weight"] == [8, 64]
    assert attention["1.self_attn.o_proj.weight"] == [64, 16]
    assert attention["2.self_attn.q_proj.bias"] == [32]
    assert attention["2.self_attn.v_proj.weight"] == [16, 64]
    assert not [name for name in attention if name.startswith("0.")]

    cache = DynamicCache()
    with torch.no_grad():
        pruned.decoder(
            inputs_embeds=prompt_of(toy_family, 0.5, 0)[None], past_key_values=cache, use_cache=True
        )
    num_tokens = cache.get_seq_length()
    assert num_tokens > 5
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [
        (1, 1, num_tokens, 1),  # a layer without heads only counts
        (1, 1, num_tokens, 8),
        (1, 2, num_tokens, 8),
    ]


def test_a_checkpoint_in_several_files_stays_one(toy_checkpoint: Path, ragged: Path, tmp_path: Path) -> None:
    whole = load_family(toy_checkpoint)
    split = tmp_path / "split"
    whole.model.to(torch.float16).save_pretrained(split, max_shard_size="100KB")
    for path in toy_checkpoint.iterdir():
        if path.suffix != ".safetensors" and not (split / path.name).exists():
            (split / path.name).write_bytes(path.read_bytes())
    assert len(list(split.glob("*.safetensors"))) > 1
    prune_checkpoint(split, RAGGED, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) <= names == {path.name for path in split.glob("*.safetensors")}
    prompt = prompt_of(load_family(toy_checkpoint), 0.5, 1)[None]
    with torch.no_grad():
        outputs = [
            load_family(folder).decoder(inputs_embeds=prompt).last_hidden_state
            for folder in (ragged, tmp_path / "out")
        ]
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("kept", ["110100", "111000", "000111", "011011", "111111", "000001"])
def test_attention_over_groups_of_any_size(kept: str, num_queries: int) -> None:
    """Against one call a head."""
    layout = HeadLayout(kept, num_kv_heads=2)
    heads = [head for head, character in enumerate(kept) if character == "1"]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, num_queries, 4, generator=generator)
    key, value = torch.randn(2, 2, 2, 7, 4, generator=generator)
    module = SimpleNamespace(num_key_value_groups=layout.group_size, is_causal=False)

    output, _ = layout.attend(
        AttentionInterface()["sdpa"],
        module,
        query[:, heads],
        key[:, layout.kv_heads],
        value[:, layout.kv_heads],
        None,
    )
    for position, head in enumerate(heads):
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[:, head], key[:, head // 3], value[:, head // 3]
        )
        torch.testing.assert_close(output[:, :, position], alone)


def mask_file_of(identity: ModelIdentity, head_mask: HeadMask) -> MaskFile:
    task = TaskSpec.model_validate(
        {"name": "asr", "title": "x", "output": {"kind": "text"}, "max_new_tokens": 8}
    )
    return MaskFile(
        task=task,
        model=identity,
        heads=tuple(head_mask.to_strings()),
        training={"seed": 3},
        evaluation={"wer": 2.0},
    )


def test_compile_writes_a_mask_file_for_the_new_weights(
    toy_checkpoint: Path, toy_family: ModelFamily, tmp_path: Path
) -> None:
    out = tmp_path / "asr-only"
    compile_task(toy_checkpoint, mask_file_of(toy_family.identity, RAGGED), out)
    identity = load_family(out).identity
    mask_file = MaskFile.load(out / "masks" / "asr.json")
    mask_file.check_model(identity, out)
    assert identity.name == "asr-only"
    assert identity.fingerprint != toy_family.identity.fingerprint
    assert mask_file.head_mask == RAGGED
    assert mask_file.training["pruned_from"] == toy_family.identity.model_dump()
    assert (mask_file.training["seed"], mask_file.evaluation) == (3, {"wer": 2.0})


def test_what_cannot_be_compiled_is_refused_and_leaves_nothing(
    toy_checkpoint: Path, toy_family: ModelFamily, ragged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    foreign = toy_family.identity.model_copy(update={"fingerprint": "sha256:" + "1" * 64})
    with pytest.raises(HeadMaskError, match="fingerprint"):
        compile_task(toy_checkpoint, mask_file_of(foreign, RAGGED), out)
    with pytest.raises(ModelError, match="another model"):
        prune_checkpoint(toy_checkpoint, HeadMask(np.ones((2, 8))), out)
    with pytest.raises(ModelError, match="cannot be pruned"):
        prune_checkpoint(ragged, RAGGED, out)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        prune_checkpoint(empty, RAGGED, out)
    (empty / "config.json").write_bytes((toy_checkpoint / "config.json").read_bytes())
    with pytest.raises(ModelError, match="no safetensors"):
        prune_checkpoint(empty, RAGGED, out)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    with pytest.raises(ModelError, match="nothing is overwritten"):
        prune_checkpoint(toy_checkpoint, RAGGED, empty)
    assert [path.name for path in empty.iterdir()] == ["config.json"]


def test_kept_heads_that_do_not_fit_are_refused(ragged: Path, tmp_path: Path) -> None:
    config = json.loads((ragged / "config.json").read_text())
    config["text_config"]["kept_heads"] = ["1111", "1111", "1111"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in ragged.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="kept_heads"):
        load_family(broken)
