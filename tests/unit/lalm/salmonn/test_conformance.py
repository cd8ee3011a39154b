"""Every stage of SALMONN gives the reference implementation's numbers, alone and in a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lalm.families import load_family
from lalm.families.salmonn.family import SalmonnFamily
from lalm.families.salmonn.features import FBANK
from lalm.family import AudioFeatures
from lalm.head_gate import gate_tensor, gating
from tests.salmonn_toy import (
    CASES,
    MODEL_FILE,
    NUM_CLIPS,
    Reference,
    head_mask_of,
    instruction_of,
    waveform,
)

ENCODER_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 2e-4
CLIPS = range(NUM_CLIPS)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def family() -> SalmonnFamily:
    loaded = load_family(MODEL_FILE)
    assert isinstance(loaded, SalmonnFamily)
    return loaded


@pytest.fixture(scope="module")
def features(family: SalmonnFamily) -> list[AudioFeatures]:
    return [family.features(waveform(clip)) for clip in CLIPS]


@pytest.fixture(scope="module")
def batch_embeds(family: SalmonnFamily, features: list[AudioFeatures]) -> list[Tensor]:
    """All clips in one batch: 0.5, 3.7 and 10.2 s."""
    return family.embed_audio(features)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("clip", CLIPS)
def test_features(reference: Reference, features: list[AudioFeatures], clip: int) -> None:
    mel, fbank = features[clip].mel, features[clip].extra[FBANK]
    assert mel.shape == (80, 3000)
    assert_near(mel[:, :64:4], reference.tensor(f"clip{clip}.mel_every4_of_64"), ENCODER_TOLERANCE)
    assert_near(mel[:, -8:], reference.tensor(f"clip{clip}.mel_last8"), ENCODER_TOLERANCE)
    assert len(fbank) == (366, 98, 1018)[clip]
    assert_near(fbank[:16], reference.tensor(f"clip{clip}.fbank_first16"), ENCODER_TOLERANCE)
    assert_near(fbank[-4:], reference.tensor(f"clip{clip}.fbank_last4"), ENCODER_TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("clip", CLIPS)
def test_encoders(
    reference: Reference, family: SalmonnFamily, features: list[AudioFeatures], clip: int
) -> None:
    speech = family.hearing.whisper(features[clip].mel[None]).last_hidden_state[0]
    assert_near(speech[::50], reference.tensor(f"clip{clip}.whisper_every50"), ENCODER_TOLERANCE)
    fbank = features[clip].extra[FBANK]
    audio, valid = family.hearing.beats(fbank[None], [len(fbank)])
    assert valid.all()
    assert audio.shape[1] == len(fbank) // 16 * 8
    assert_near(audio[0, ::4], reference.tensor(f"clip{clip}.beats_every4"), ENCODER_TOLERANCE)


@torch.no_grad()
def test_beats_in_a_batch_hears_each_clip_as_alone(
    reference: Reference, family: SalmonnFamily, features: list[AudioFeatures]
) -> None:
    fbanks = [clip.extra[FBANK] for clip in features]
    # what stands behind a clip is of no consequence, also where it is loud
    padded = torch.full((NUM_CLIPS, max(map(len, fbanks)), 128), 7.0)
    for row, fbank in enumerate(fbanks):
        padded[row, : len(fbank)] = fbank
    audio, valid = family.hearing.beats(padded, [len(fbank) for fbank in fbanks])
    for clip in CLIPS:
        expected = reference.tensor(f"clip{clip}.beats_every4")
        own = audio[clip][valid[clip]]
        assert len(own[::4]) == len(expected)
        assert_near(own[::4], expected, ENCODER_TOLERANCE)


@pytest.mark.parametrize("clip", CLIPS)
def test_audio_embeddings_alone_and_in_a_batch(
    reference: Reference,
    family: SalmonnFamily,
    features: list[AudioFeatures],
    batch_embeds: list[Tensor],
    clip: int,
) -> None:
    expected = reference.tensor(f"clip{clip}.speech_embeds")
    (alone,) = family.embed_audio([features[clip]])
    assert alone.shape == (88, 96) == (features[clip].num_audio_tokens, 96)
    assert_near(alone, expected, ENCODER_TOLERANCE)
    assert_near(batch_embeds[clip], expected, ENCODER_TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_prompts(reference: Reference, family: SalmonnFamily, case: str) -> None:
    """The halves are tokenized apart, with the space before an instruction that is not there."""
    before, after = family.prompt_segments(instruction_of(case), 1)
    expected = reference.case(0, case)
    assert before == [1, *expected["ids_before"]]
    assert after == expected["ids_after"]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("clip", CLIPS)
def test_logits_and_greedy_tokens(
    reference: Reference, family: SalmonnFamily, batch_embeds: list[Tensor], clip: int, case: str
) -> None:
    prompt = family.embed_prompt([batch_embeds[clip]], instruction_of(case))
    expected = reference.case(clip, case)
    assert len(prompt) == 1 + len(expected["ids_before"]) + 88 + len(expected["ids_after"])
    gate = gate_tensor([head_mask_of(case)], 4, 6)
    with gating(family.decoder, gate):
        hidden = family.decoder(inputs_embeds=prompt[None]).last_hidden_state[0, -5:]
        ids = family.model.generate(  # type: ignore[operator]
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=2,
        )
    logits = reference.tensor(f"clip{clip}.{case}.logits_last5")[:, :-1]  # the last is [PAD]'s
    assert_near(family.lm_head(hidden), logits, LOGIT_TOLERANCE)
    assert ids[0].tolist() == expected["greedy"][0][1:]  # the reference repeats BOS
    assert family.decode_tokens(ids[0].tolist()) == expected["greedy_text"][0].strip()


def test_the_head_mask_is_the_published_one(reference: Reference) -> None:
    """Logits of 0.0 and -1e-9 count as active; the feed-forward column counts not at all."""
    head_mask = head_mask_of("mask")
    assert head_mask is not None
    binary = torch.tensor(reference.facts["binary_mask"]).reshape(4, 7)[:, :6]
    assert torch.equal(torch.from_numpy(head_mask.heads.copy()).float(), binary)


def test_text_tokens(reference: Reference, family: SalmonnFamily) -> None:
    facts = reference.facts["train_forward"]
    for text, ids in zip(facts["target_text"], facts["target_ids"], strict=True):
        assert [*family.encode_text(text), 2] == ids[: ids.index(2) + 1]
        assert family.decode_tokens([1, *family.encode_text(text), 2]) == text
