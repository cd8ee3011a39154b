"""Every model of `lalm.families.hf`, at toy size and with random weights, against transformers itself."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import soundfile
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from lalm.errors import EmptyAudioError, HeadMaskError, ModelError
from lalm.families import identify, load_family
from lalm.families.hf_models import MODELS
from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from service.app import create_app
from service.catalogue import Catalogue
from service.inference.request import EngineRequest
from service.settings import Settings
from tests.engine_support import make_request, make_row, random_mask, reference, running_engine
from tests.hf_reference import AUDIO_TOKENS, plain_model, reference_inputs
from tests.mask_files import mask_file
from tests.ready_client import ready_client
from tests.toy import toy_waveform
from tests.toy_hf import NUM_HEADS, NUM_LAYERS, WRITERS

INSTRUCTION = "what is said"
NUM_TOKENS = 12


class Toy(NamedTuple):
    name: str
    folder: Path
    family: ModelFamily


@pytest.fixture(scope="module", params=list(WRITERS))
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = WRITERS[request.param](tmp_path_factory.mktemp("hf") / request.param)
    family = load_family(folder)
    return Toy(family.identity.family, folder, family)


def prompt_text(toy: Toy, instruction: str | None) -> str:
    """The prompt as a text, one placeholder for the audio."""
    before, after = toy.family.prompt_segments(instruction, 1)
    tokenizer = toy.family._tokens.tokenizer  # type: ignore[attr-defined]
    return str(tokenizer.decode(before) + AUDIO_TOKENS[toy.name] + tokenizer.decode(after))


def greedy(family: ModelFamily, requests: list[EngineRequest], max_slots: int = 8) -> list[list[list[int]]]:
    async def ask() -> list[list[list[int]]]:
        results = await asyncio.gather(*(engine.submit(request) for request in requests))
        return [[row.token_ids for row in result.rows] for result in results]

    with running_engine(family, max_slots=max_slots) as engine:
        return asyncio.run(ask())


def test_every_model_of_the_table_is_tested() -> None:
    assert set(MODELS) <= set(WRITERS)


def test_it_says_who_it_is_without_being_loaded(toy: Toy) -> None:
    identity = toy.family.identity
    assert identify(toy.folder) == identity
    assert (identity.num_layers, identity.num_heads) == (NUM_LAYERS, NUM_HEADS)


@pytest.mark.parametrize("instruction", [INSTRUCTION, None])
def test_greedy_tokens_are_those_of_the_models_own_generate(toy: Toy, instruction: str | None) -> None:
    model, waveform = plain_model(toy.name, toy.folder), toy_waveform(1.37, seed=3)
    inputs = reference_inputs(toy.name, toy.folder, waveform, prompt_text(toy, instruction))
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
    expected = output[0, inputs["input_ids"].shape[1] :].tolist()
    expected = expected[: next((n for n, t in enumerate(expected) if t in toy.family.eos_token_ids), None)]

    request = EngineRequest(
        "it", [toy.family.features(waveform)], [make_row(None, instruction=instruction, n=NUM_TOKENS)]
    )
    assert greedy(toy.family, [request]) == [[expected]]
    assert len(expected) > 3


def test_a_gate_of_ones_is_the_plain_model_to_the_bit(toy: Toy) -> None:
    family = toy.family
    prompt = family.embed_prompt(family.embed_audio([family.features(toy_waveform(0.9))]), INSTRUCTION)[None]
    ones = gate_tensor([HeadMask.ones(NUM_LAYERS, NUM_HEADS)], NUM_LAYERS, NUM_HEADS)
    with torch.no_grad():
        plain = family.decoder(inputs_embeds=prompt).last_hidden_state
        gated = family.decoder(inputs_embeds=prompt, head_gate=ones).last_hidden_state
        masked = family.decoder(
            inputs_embeds=prompt,
            head_gate=gate_tensor([random_mask(family, 1, NUM_HEADS)], NUM_LAYERS, NUM_HEADS),
        ).last_hidden_state
    assert torch.equal(plain, gated)
    assert not torch.allclose(plain, masked)


def test_a_mixed_batch_gives_the_tokens_of_each_alone(toy: Toy) -> None:
    family = toy.family
    requests = [
        make_request(family, 1.1, make_row(random_mask(family, 1), n=NUM_TOKENS), seed=1),
        make_request(
            family, 0.05, make_row(random_mask(family, 2), n=NUM_TOKENS), make_row(None, n=5), seed=2
        ),
        make_request(family, [0.4, 1.9], make_row(random_mask(family, 3), n=NUM_TOKENS), seed=3),
        make_request(family, 2.2, make_row(random_mask(family, 4), instruction=INSTRUCTION, n=8), seed=4),
    ]
    expected = [[reference(family, request, row) for row in request.rows] for request in requests]
    assert greedy(family, requests) == expected
    assert len({tuple(row) for rows in expected for row in rows}) > 2


def test_audio_and_its_batch_do_not_meet(toy: Toy) -> None:
    family = toy.family
    clips = [family.features(toy_waveform(seconds, seed)) for seed, seconds in enumerate((0.7, 2.3, 0.02))]
    together = family.embed_audio(clips)
    for clip, embeds in zip(clips, together, strict=True):
        assert embeds.shape == (clip.num_audio_tokens, family.decoder.config.hidden_size)
        torch.testing.assert_close(embeds, family.embed_audio([clip])[0], atol=1e-5, rtol=1e-4)
    assert family.embed_audio([]) == []
    with pytest.raises(EmptyAudioError):
        family.features(toy_waveform(0.0))


def test_a_recording_is_cut_at_the_window(toy: Toy) -> None:
    assert toy.family.max_audio_s == 30.0
    long, cut = (toy.family.features(toy_waveform(31.0)[: seconds * 16_000]) for seconds in (31, 30))
    assert torch.equal(long.mel, cut.mel)


def test_masks_of_another_shape_or_model_are_refused(toy: Toy, tmp_path: Path) -> None:
    identity = toy.family.identity
    with pytest.raises(ValueError, match="3 layers x 8 heads"):
        gate_tensor([HeadMask.ones(NUM_LAYERS, NUM_HEADS + 1)], NUM_LAYERS, NUM_HEADS)
    other = identity.model_copy(update={"num_heads": NUM_HEADS + 1})
    foreign = identity.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    for model, said in ((other, "made for 3 layers x 9 heads"), (foreign, "with fingerprint")):
        wrong = HeadMask.ones(model.num_layers, model.num_heads)
        mask_file("asr", wrong, model).save(tmp_path / "asr.json")
        with pytest.raises(HeadMaskError, match=said):
            Catalogue.load(tmp_path, identity)


def test_an_instruction_may_not_hold_the_place_of_an_audio(toy: Toy) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        toy.family.prompt_segments(f"what {AUDIO_TOKENS[toy.name]} is", 1)
    assert len(toy.family.prompt_segments(None, 2)) == 3


def test_a_missing_tensor_is_refused_and_a_changed_one_is_another_model(toy: Toy, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy.folder, tmp_path / toy.folder.name))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("layers.1.self_attn.o_proj.weight"))
    changed = {**tensors, name: tensors[name] * 1.01}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    assert identify(folder).fingerprint != toy.family.identity.fingerprint
    del changed[name]
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 tensors are missing"):
        load_family(folder)


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS["granite_speech_with_adapter"](tmp_path_factory.mktemp("hf") / "granite")


def test_an_adapter_counts_in_the_answer_and_in_the_fingerprint(granite: Path, tmp_path: Path) -> None:
    with_adapter = load_family(granite)
    folder = Path(shutil.copytree(granite, tmp_path / "without"))
    for path in folder.glob("adapter_*"):
        path.unlink()
    without = load_family(folder)
    assert with_adapter.identity.fingerprint != without.identity.fingerprint
    prompt = with_adapter.embed_prompt(with_adapter.embed_audio([with_adapter.features(toy_waveform(1.0))]))
    hidden = [
        family.decoder(inputs_embeds=prompt[None]).last_hidden_state for family in (with_adapter, without)
    ]
    assert not torch.allclose(*hidden)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "embedding_multiplier", 3.0),
        ("text_config", "attention_multiplier", 0.5),
        ("text_config", "residual_multiplier", 0.5),
        ("text_config", "logits_scaling", 8.0),
        (None, "window_size", 20),
        (None, "downsample_rate", 3),
    ],
)
def test_granites_numbers_take_part_in_the_fingerprint(
    granite: Path, tmp_path: Path, part: str | None, key: str, value: float
) -> None:
    folder = Path(shutil.copytree(granite, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    holder = config[part] if part else config
    assert holder[key] != value
    holder[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert identify(folder).fingerprint != identify(granite).fingerprint


@pytest.fixture(scope="module")
def client(granite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    masks_dir, identity = tmp_path_factory.mktemp("masks"), identify(granite)
    for seed, task in enumerate(("asr", "gr")):
        mask_file(task, random_mask_of(seed), identity).save(masks_dir / f"{task}.json")
    with ready_client(create_app(Settings(model=str(granite), masks_dir=masks_dir, max_slots=2))) as client:
        yield client


def random_mask_of(seed: int) -> HeadMask:
    from tests.mask_files import random_mask as draw

    return draw(18, (NUM_LAYERS, NUM_HEADS), seed)


def test_the_service_answers_with_such_a_model(client: TestClient, granite: Path) -> None:
    family = load_family(granite)
    buffer = io.BytesIO()
    soundfile.write(buffer, toy_waveform(1.2), 16_000, format="WAV", subtype="FLOAT")
    answers: dict[str, Any] = {}
    for seed, task in enumerate(("asr", "gr")):
        response = client.post(f"/tasks/{task}", files={"file": buffer.getvalue()})
        assert response.status_code == 200
        answers[task] = response.json()
        request = make_request(family, 1.2, make_row(random_mask_of(seed), n=8))
        expected = reference(family, request, request.rows[0])
        assert answers[task]["text"] == family.decode_tokens(expected)
        assert answers[task]["usage"]["output_tokens"] == len(expected)
    assert answers["asr"]["text"] != answers["gr"]["text"]
