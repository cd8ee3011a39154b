from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from lalm.errors import EmptyAudioError
from lalm.families import load_family, qwen2_audio
from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor, gating
from lalm.head_mask import HeadMask
from tests.toy import toy_waveform, write_toy_checkpoint

# around every edge: the shortest clip with a token, odd and even frames, part frames, the end of the window
EDGES_S = [
    0.0201,
    0.03,
    0.05,
    0.5,
    1.0,
    1.01,
    1.02,
    1.03,
    1.2345,
    7.77,
    29.95,
    29.97,
    29.98,
    29.99,
    29.995,
    30.0,
]
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference(toy_checkpoint: Path) -> tuple[Any, Any]:
    """transformers' own model and processor, nothing of ours."""
    model = Qwen2AudioForConditionalGeneration.from_pretrained(
        toy_checkpoint, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval().requires_grad_(False), AutoProcessor.from_pretrained(toy_checkpoint)


def reference_inputs(reference: tuple[Any, Any], text: str, waveforms: list[NDArray[np.float32]]) -> Any:
    return reference[1](text=text, audio=waveforms, sampling_rate=16_000, return_tensors="pt")


def reference_prompt(reference: tuple[Any, Any], inputs: Any) -> Tensor:
    """What transformers hands to its language model after merging text and audio: [prompt_len, hidden]."""
    seen: dict[str, Tensor] = {}
    model = reference[0]
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.update(embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        model(**inputs)
    finally:
        handle.remove()
    return seen["embeds"][0]


def chat_text(reference: tuple[Any, Any], instruction: str, num_audios: int) -> str:
    content = [{"type": "audio", "audio_url": "x.wav"}] * num_audios + [{"type": "text", "text": instruction}]
    conversation = [{"role": "user", "content": content}]
    return reference[1].apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


def embed(family: ModelFamily, *waveforms: NDArray[np.float32]) -> list[Tensor]:
    return family.embed_audio([family.features(waveform) for waveform in waveforms])


@pytest.mark.parametrize("duration_s", EDGES_S)
def test_features_and_embeddings_equal_the_padded_computation(
    duration_s: float, toy_family: ModelFamily, reference: tuple[Any, Any]
) -> None:
    waveform = toy_waveform(duration_s)
    inputs = reference_inputs(reference, "<|audio_bos|><|AUDIO|><|audio_eos|>", [waveform])
    features = toy_family.features(waveform)
    assert inputs.input_features.shape[-1] == 3000
    assert features.num_frames == int(inputs.feature_attention_mask.sum())
    assert features.num_frames <= features.mel.shape[1] <= features.num_frames + 2
    padded = inputs.input_features[0, :, : features.mel.shape[1]]
    torch.testing.assert_close(features.mel, padded, **CLOSE)
    expected = reference_prompt(reference, inputs)[1:-1]
    (found,) = toy_family.embed_audio([features])
    assert found.shape == (features.num_audio_tokens, 64)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_margin_is_needed_and_wide_enough(toy_family: ModelFamily) -> None:
    """What follows a clip of an odd number of frames, sound even, reaches it through two frames only."""
    full = toy_family.features(toy_waveform(2.0))

    def embed_width(width: int) -> Tensor:
        clip = dataclasses.replace(full, mel=full.mel[:, :width], num_frames=101, num_audio_tokens=25)
        return toy_family.embed_audio([clip])[0]

    torch.testing.assert_close(embed_width(103), embed_width(150), **CLOSE)
    assert not torch.allclose(embed_width(101), embed_width(150), **CLOSE)


def encode_as_on_a_gpu(
    patch: pytest.MonkeyPatch, batches: Callable[[Sequence[int]], list[list[int]]]
) -> None:
    patch.setattr(qwen2_audio, "_batches", lambda lengths, *, alone: batches(lengths))


@pytest.mark.parametrize("together", [True, False])
def test_a_batch_of_different_lengths_equals_each_clip_alone(
    toy_family: ModelFamily, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together:
        encode_as_on_a_gpu(monkeypatch, lambda lengths: [list(range(len(lengths)))] if lengths else [])
    waveforms = [toy_waveform(seconds, seed) for seed, seconds in enumerate([0.05, 3.0, 1.013, 30.0, 0.7])]
    for alone, batched in zip(
        [embed(toy_family, waveform)[0] for waveform in waveforms], embed(toy_family, *waveforms), strict=True
    ):
        assert alone.shape == batched.shape
        torch.testing.assert_close(alone, batched, **CLOSE)
    assert toy_family.embed_audio([]) == []


def test_clips_of_much_the_same_length_are_encoded_together() -> None:
    lengths = [100, 3000, 80, 2500, 74, 2000]
    assert qwen2_audio._batches(lengths, alone=True) == [[1], [3], [5], [0], [2], [4]]
    assert qwen2_audio._batches(lengths, alone=False) == [[1, 3], [5], [0, 2], [4]]
    assert qwen2_audio._batches([], alone=False) == []


def test_a_neighbour_in_the_encoder_batch_changes_nothing(
    toy_family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_as_on_a_gpu(monkeypatch, lambda lengths: [list(range(len(lengths)))])
    short, long = toy_waveform(1.0), toy_waveform(2.0)
    quiet = embed(toy_family, short, np.zeros_like(long))[0]
    assert torch.equal(quiet, embed(toy_family, short, long)[0])


@pytest.mark.parametrize("num_samples", [1, 160, 320, 321, 480])
def test_very_short_clips_have_one_token(num_samples: int, toy_family: ModelFamily) -> None:
    waveform = toy_waveform(1.0)[:num_samples]
    features = toy_family.features(waveform)
    assert (features.num_frames, features.num_audio_tokens) == (3, 1)
    silent_to_30_ms = np.pad(waveform, (0, 480 - num_samples))
    assert torch.equal(features.mel, toy_family.features(silent_to_30_ms).mel)
    assert bool(embed(toy_family, waveform)[0].isfinite().all())


def test_silence_and_long_clips(toy_family: ModelFamily) -> None:
    assert bool(embed(toy_family, np.zeros(16_000, np.float32))[0].isfinite().all())
    long = toy_waveform(31.0)
    cut = toy_family.features(long)
    assert (toy_family.max_audio_s, cut.num_frames, cut.num_audio_tokens) == (30.0, 3000, 750)
    assert torch.equal(cut.mel, toy_family.features(long[: 30 * 16_000]).mel)
    with pytest.raises(EmptyAudioError):
        toy_family.features(np.zeros(0, np.float32))


def test_features_do_not_depend_on_the_thread(toy_family: ModelFamily) -> None:
    waveforms = [toy_waveform(0.2 + 0.1 * seed, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(toy_family.features, waveforms))
    for waveform, features in zip(waveforms, threaded, strict=True):
        assert torch.equal(features.mel, toy_family.features(waveform).mel)


INSTRUCTIONS = ["what is said?", "  Translate: ü, “x”\n\nnow ", "", "write <|im_end|> as it is"]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("num_audios", [1, 2])
def test_segments_are_the_tokens_of_the_whole_prompt(
    instruction: str, num_audios: int, toy_family: ModelFamily, reference: tuple[Any, Any]
) -> None:
    tokenizer = reference[1].tokenizer
    segments = toy_family.prompt_segments(instruction, num_audios)
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    joined = list(segments[0])
    for segment in segments[1:]:
        joined += [audio_id, *segment]
    assert joined == tokenizer(chat_text(reference, instruction, num_audios)).input_ids


def test_audio_alone_is_wrapped_and_nothing_else(toy_family: ModelFamily, reference: tuple[Any, Any]) -> None:
    begin, end = reference[1].tokenizer.convert_tokens_to_ids(["<|audio_bos|>", "<|audio_eos|>"])
    assert toy_family.prompt_segments(None, 1) == [[begin], [end]]
    assert toy_family.prompt_segments(None, 2) == [[begin], [end, begin], [end]]


def test_an_instruction_with_the_audio_placeholder_is_refused(toy_family: ModelFamily) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        toy_family.prompt_segments("look: <|AUDIO|>", 1)


@pytest.mark.parametrize("instruction", [None, "what is said?"])
@pytest.mark.parametrize("num_audios", [1, 2])
def test_embed_prompt_and_greedy_answer_equal_transformers(
    instruction: str | None, num_audios: int, toy_family: ModelFamily, reference: tuple[Any, Any]
) -> None:
    waveforms = [toy_waveform(1.3, seed=1), toy_waveform(2.017, seed=2)][:num_audios]
    if instruction is None:
        text = "<|audio_bos|><|AUDIO|><|audio_eos|>" * num_audios
    else:
        text = chat_text(reference, instruction, num_audios)
    inputs = reference_inputs(reference, text, waveforms)
    prompt = toy_family.embed_prompt(embed(toy_family, *waveforms), instruction)
    torch.testing.assert_close(prompt, reference_prompt(reference, inputs), **CLOSE)
    options = {"max_new_tokens": 16, "do_sample": False}
    expected = reference[0].generate(**inputs, **options)[:, inputs.input_ids.shape[1] :]
    attention_mask = torch.ones(1, prompt.shape[0], dtype=torch.long)
    found = toy_family.model.generate(inputs_embeds=prompt[None], attention_mask=attention_mask, **options)
    assert found.tolist() == expected.tolist()


def test_a_head_mask_changes_the_answer_through_the_whole_model(toy_family: ModelFamily) -> None:
    identity = toy_family.identity
    shape = (identity.num_layers, identity.num_heads)
    head_mask = HeadMask.random(shape[0] * shape[1] // 2, np.random.default_rng(0), shape)
    prompt = toy_family.embed_prompt(embed(toy_family, toy_waveform(1.0)))[None]
    options = {"attention_mask": torch.ones(prompt.shape[:2], dtype=torch.long), "max_new_tokens": 8}
    answers = {}
    for name, gate in {
        "none": None,
        "ones": gate_tensor([HeadMask.ones(*shape)], *shape),
        "half": gate_tensor([head_mask], *shape),
    }.items():
        with gating(toy_family.decoder, gate):
            answers[name] = toy_family.model.generate(
                inputs_embeds=prompt, do_sample=False, **options
            ).tolist()
    assert answers["ones"] == answers["none"]
    assert answers["half"] != answers["none"]


def test_decoder_and_head_are_the_model(toy_family: ModelFamily) -> None:
    prompt = toy_family.embed_prompt(embed(toy_family, toy_waveform(0.5)))[None]
    logits = toy_family.lm_head(toy_family.decoder(inputs_embeds=prompt).last_hidden_state)
    assert torch.equal(logits, toy_family.model(inputs_embeds=prompt).logits)


def test_text_round_trip_and_end_tokens(toy_family: ModelFamily, reference: tuple[Any, Any]) -> None:
    tokenizer = reference[1].tokenizer
    ids = toy_family.encode_text("  what is said | Größe  ")
    assert ids == tokenizer("  what is said | Größe  ", add_special_tokens=False).input_ids
    end, padding_of_the_vocabulary = tokenizer.convert_tokens_to_ids("<|im_end|>"), len(tokenizer) + 3
    assert toy_family.decode_tokens([*ids, padding_of_the_vocabulary, end]) == "what is said | Größe"
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert toy_family.eos_token_ids == ends


def test_the_model_is_frozen_and_float32(toy_family: ModelFamily) -> None:
    assert not toy_family.model.training
    assert not any(parameter.requires_grad for parameter in toy_family.model.parameters())
    assert toy_family.dtype == torch.float32
    assert toy_family.device == torch.device("cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str, toy_checkpoint: Path, toy_family: ModelFamily) -> None:
    half = load_family(toy_checkpoint, dtype=dtype)
    assert half.dtype == getattr(torch, dtype)
    waveform = toy_waveform(1.0)
    found, expected = embed(half, waveform)[0], embed(toy_family, waveform)[0]
    assert found.dtype == half.dtype
    assert float((found.float() - expected).norm() / expected.norm()) < 0.05
    assert half.identity.fingerprint == toy_family.identity.fingerprint


def test_other_sizes_load_and_answer(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(
        tmp_path / "bigger", num_layers=5, num_heads=12, num_kv_heads=3, hidden_size=96, encoder_layers=3
    )
    family = load_family(folder)
    assert (family.identity.name, family.identity.num_layers, family.identity.num_heads) == ("bigger", 5, 12)
    prompt = family.embed_prompt(embed(family, toy_waveform(1.0)))
    gate = gate_tensor([HeadMask.ones(5, 12)], 5, 12)
    plain = family.decoder(inputs_embeds=prompt[None]).last_hidden_state
    assert torch.equal(family.decoder(inputs_embeds=prompt[None], head_gate=gate).last_hidden_state, plain)
