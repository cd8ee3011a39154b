"""Both stages of pretraining, a few steps on a handful of made-up recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lalm.families import load_family
from training.tiny import decoder_stage, encoder_stage, listener
from training.tiny.corpus import write_manifests
from training.tiny.decoder_stage import DecoderStage, condensed
from training.tiny.encoder_stage import EncoderStage
from training.tiny.features import Corpus
from training.tiny.local_heads import HEADS, OFFSETS, frames
from training.tiny.model import encode
from training.tiny.pretrain import main
from training.tiny.records import Pair, Record, Traits
from training.tiny.run import Run

SPEECH = [
    Record(
        path=f"{number}.flac",
        transcript=("turn on the light", "two")[number % 2],
        translation=("schalte das licht an", "zwei")[number % 2],
        gender=("male", "female")[number % 4 > 1],
        emotion="sad",
        speaker=f"speaker-{number % 4}",
        traits=Traits(100.0 + number % 4, 1.0, 0.8 + 0.1 * (number % 2), 90.0, 0.7),
    )
    for number in range(8)
]
OTHERS = [
    Record(path="o.flac", transcript="two", second="turn on the light"),
    Record(path="s.flac", caption="a bell rings", sounds=("bell",)),
]


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what learns from many clips."""
    monkeypatch.setattr(listener, "FIT_STEPS", 4)
    monkeypatch.setattr(decoder_stage, "COMPARED_PAIRS", 6)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two splits whose spectrograms are there already."""
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        records = [*SPEECH, *OTHERS]
        write_manifests(folder, records, [Pair(0, 4, same=True), Pair(0, 1, same=False)])
        lengths = rng.integers(80, 160, size=len(records))
        mel = rng.standard_normal((128, lengths.sum())).astype(np.float16)
        np.savez(folder / "mels.npz", mel=mel, lengths=lengths)
    return tmp_path / "corpus"


def test_a_checkpoint_comes_out_and_the_log_says_how(corpus: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    main(corpus, tmp_path / "checkpoint", work=work, encoder_steps=2, decoder_steps=4, batch_size=4)
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["features", "encoder", "decoder"]
    assert all(np.isfinite(line["loss"]) for line in lines[1:])
    identity = load_family(tmp_path / "checkpoint").identity
    assert (identity.num_layers, identity.num_heads) == (4, 256)


def test_a_finished_checkpoint_goes_on_from_where_it_is(corpus: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(corpus, first, work=tmp_path / "work", encoder_steps=2, decoder_steps=4, batch_size=4)
    options = {"encoder_steps": 2, "decoder_steps": 0, "batch_size": 4, "start_from": first}
    main(corpus, second, work=tmp_path / "more", **options)  # type: ignore[arg-type]
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("audio_tower.layer" in name or "audio_tower.conv" in name for name in changed)


@pytest.mark.parametrize("pair_share", [0.0, 1.0])
def test_encoder_and_decoder_learn_together(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair_share: float
) -> None:
    monkeypatch.setattr(encoder_stage, "PAIR_SHARE", pair_share)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    main(corpus, first, work=tmp_path / "work", encoder_steps=2, decoder_steps=4, batch_size=4)
    options = {"encoder_steps": 2, "decoder_steps": 0, "batch_size": 4, "start_from": first}
    main(corpus, second, work=tmp_path / "more", together=True, **options)  # type: ignore[arg-type]
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} >= {"audio_tower", "language_model"}
    resumed = {**options, "encoder_steps": 0, "resume": True, "resume_decoder": True}
    main(corpus, third, work=tmp_path / "more", **resumed)  # type: ignore[arg-type]
    saved = load_file(third / "model.safetensors")
    assert all(torch.equal(after[name], saved[name]) for name in after)


def test_a_new_encoder_learns_from_a_checkpoint_s(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(corpus, first, work=tmp_path / "work", encoder_steps=2, decoder_steps=4, batch_size=4)

    def distance(taught_steps: int) -> float:
        """How far a new encoder's outputs are from the old one's after a few steps."""
        monkeypatch.setattr(encoder_stage, "TAUGHT_STEPS", taught_steps)
        run = Run(corpus, tmp_path / "more", "cpu", seed=3, checkpoint=first)
        stage, old = EncoderStage(run), run.model.model.audio_tower
        stage.renew()
        stage.train(20, 4, 2e-3)
        with torch.no_grad():
            right, learnt = (encode(t, *run.some_clips())[2] for t in (old, run.model.model.audio_tower))
        return float((learnt - right).square().mean())

    assert distance(20) < 0.9 * distance(0)
    options = {"encoder_steps": 2, "decoder_steps": 0, "batch_size": 4, "start_from": first}
    main(corpus, second, work=tmp_path / "new", new_encoder=True, **options)  # type: ignore[arg-type]
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before if "audio_tower" not in name)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("layers.0.fc1.weight" in name for name in changed)


def test_heads_of_a_new_encoder_listen_at_their_distance(corpus: Path, tmp_path: Path) -> None:
    run = Run(corpus, tmp_path / "work", "cpu", seed=4)
    tower, (mels, lengths) = run.model.model.audio_tower, run.some_clips()
    layer, size = tower.layers[0], 256 // HEADS
    hidden = layer.self_attn_layer_norm(frames(tower, mels[:1], lengths[:1])[0])
    queries, keys = layer.self_attn.q_proj(hidden)[0], layer.self_attn.k_proj(hidden)[0]
    for head, offset in enumerate(OFFSETS[0]):
        rows = slice(head * size, (head + 1) * size)
        nearest = (queries[:, rows] @ keys[:, rows].T).argmax(1)[10:30]
        assert nearest.tolist() == [frame + offset for frame in range(10, 30)]


def test_the_encoder_learns_by_a_decoder_s_answers(corpus: Path, tmp_path: Path) -> None:
    run = Run(corpus, tmp_path / "work", "cpu", seed=1)
    encoder, decoder = EncoderStage(run), DecoderStage(run)

    def gradients(pairs: list[Pair]) -> list[bool]:
        heard = encode(run.model.model.audio_tower, *run.train.pad([0, 4]))
        run.model.zero_grad()
        decoder.heard_loss([0, 4], pairs, *heard[2:]).backward()
        parts = (run.model.model.audio_tower.conv1, run.model.model.language_model.layers[0].mlp.up_proj)
        return [part.weight.grad is not None and bool(part.weight.grad.any()) for part in parts]

    pairs = [Pair(0, 1, same=True)]
    encoder.train_listener(1, 4)
    assert gradients([]) == gradients(pairs) == [True, True]
    encoder.train(1, 4, 1e-3, decoder)
    assert gradients([]) == gradients(pairs) == [True, False]
    with decoder.answering(learns=True):
        assert gradients([]) == gradients(pairs) == [True, True]


def test_words_are_learnt_only_where_they_are_known(corpus: Path, tmp_path: Path) -> None:
    run = Run(corpus, tmp_path / "work", "cpu", seed=1)
    records = [replace(record, transcript=None, translation=None) for record in SPEECH]
    run.train = Corpus(records, run.train.mels[: len(records)], [])
    stage, layers = EncoderStage(run), []
    for steps in (0, 2):
        stage.train_listener(steps, 4)
        stage.train(1, 4, 0.0)  # writes the state
        layers.append(torch.load(tmp_path / "work" / "encoder.pt", weights_only=True)["listener"])
    kept = {name for name, weight in layers[0].items() if torch.equal(weight, layers[1][name])}
    assert kept >= {"words.weight", "letters.weight"}
    assert not kept & {"emotion.weight", "gender.weight", "voice.weight"}


def test_the_decoder_learns_to_compare_speakers(corpus: Path, tmp_path: Path) -> None:
    run = Run(corpus, tmp_path / "work", "cpu", seed=2)
    stage, some = DecoderStage(run), run.train.part([0, 4, 1])  # two of one speaker, one of another
    heard = stage.encode_all(some, augmented=False)
    encoded = [condensed(clip) for clip in stage.encode_all(run.train, augmented=False)]
    before = stage.verification(run.train, encoded)
    stage.compare(some, heard, steps=40)
    assert (before, stage.verification(run.train, encoded)) == (0.0, 1.0)
    lines = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "pairs"] == [40]


@pytest.mark.parametrize("together", [False, True])
def test_pairs_of_speakers_come_first(corpus: Path, tmp_path: Path, together: bool) -> None:
    first, work = tmp_path / "first", tmp_path / "more"
    main(corpus, first, work=tmp_path / "work", encoder_steps=2, decoder_steps=4, batch_size=4)
    options = {"batch_size": 4, "start_from": first, "together": together, "pair_steps": 2}
    main(corpus, tmp_path / "second", work=work, encoder_steps=2, decoder_steps=2, **options)  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    stages = ["pairs", "encoder"] if together else ["encoder", "pairs"]
    assert [line["stage"] for line in lines] == ["features", *stages, "decoder"]


def test_a_condensed_clip_is_the_means_of_its_stretches() -> None:
    clip = torch.arange(14.0).view(7, 2)
    assert torch.equal(condensed(clip), torch.stack([clip[:3].mean(0), clip[3:5].mean(0), clip[5:].mean(0)]))
    assert torch.equal(condensed(clip[:2]), clip[:2])
