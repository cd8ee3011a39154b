"""The embedded model's making: grammar, sounds, mixtures, packed rows, split heads, corpus."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch

from training.tiny import acoustics, mixtures
from training.tiny.coffee import draw_order, draw_order_of
from training.tiny.corpus import make_shard, write_manifests
from training.tiny.features import Corpus, augment
from training.tiny.grammar import Sentence, Split, draw
from training.tiny.listener import LETTERS
from training.tiny.model import audio_config, build_model, split_heads, train_tokenizer
from training.tiny.optimizer import MatrixOptimizer, WeightAverage
from training.tiny.orders import is_held_out, likely_gender, negative_log_likelihoods
from training.tiny.pairs import draw_pairs
from training.tiny.recorded import is_a_sentence, prompt_speakers, share_of, slot_recall
from training.tiny.records import TASKS, Pair, Record, Traits, answers, read_pairs, read_records
from training.tiny.segments import (
    INSTRUCTIONS,
    UNPROMPTED_SHARES,
    Row,
    RowMaker,
    instruction,
    pack,
    texts_of,
)
from training.tiny.sounds import EVENTS, make_event
from training.tiny.studio import median_pitch_hz

UTTERANCE = Record(
    path="a.flac",
    transcript="turn on the light",
    translation="schalte das licht an",
    gender="male",
    emotion="sad",
    speaker="a",
    traits=Traits(110.0, 0.95, 0.9, 100.0, 0.7),
)
OVERLAP = Record(path="o.flac", transcript="two", second="play rock music in the office")
SCENE = Record(path="s.flac", caption="a bell rings", sounds=("bell",))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [
        *answers(UTTERANCE).values(),
        "same",
        "different",
        *(w for ws in INSTRUCTIONS.values() for w in ws),
    ]
    return train_tokenizer(texts * 3)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return build_model(tokenizer, audio_config()).eval()


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_drawn_sentences_belong_to_their_split(split: Split) -> None:
    rng = Random(1)
    assert {draw(rng, split).split for _ in range(300)} == {split}


def test_no_held_out_sentence_is_trained_on() -> None:
    train = {draw(Random(seed), "train") for seed in range(2000)}
    test = {draw(Random(seed), "test") for seed in range(500)}
    assert len(test) > 30
    assert not train & test


def test_single_words_are_not_held_out() -> None:
    assert Sentence("seven", "sieben").split == "train"


def test_every_task_has_instructions_an_answer_and_a_share() -> None:
    answered = {task for record in (UTTERANCE, OVERLAP, SCENE) for task in answers(record)} | {"asv"}
    assert answered == set(TASKS) == set(INSTRUCTIONS) == set(UNPROMPTED_SHARES)
    assert answers(UTTERANCE)["gr-asr"] == "male | turn on the light"
    assert answers(OVERLAP) == {"osr": "two | play rock music in the office"}


def test_what_is_not_known_is_not_asked() -> None:
    digit = Record(path="d.flac", transcript="two", translation="zwei", gender="male")
    assert set(answers(digit)) == {"asr", "s2tt", "gr", "asr-gr", "gr-asr", "asr-gr-json"}


def test_of_a_voice_of_another_language_nobody_asks_what_it_says(tokenizer) -> None:
    record = Record(path="f.flac", gender="male", emotion="sad", speaker="a", voice="pico/de-DE")
    assert texts_of(record) == answers(record) == {"ser": "sad", "gr": "male"}
    maker = RowMaker(tokenizer, Random(0))
    assert not maker.one(0, record, unprompted=True, degrade=False).unprompted
    rows = [
        maker.two(Pair(0, 1, same=False), [record, UTTERANCE], unprompted=True, degrade=False)
        for _ in range(20)
    ]
    answered = {tokenizer.decode(answer[:-1]) for row in rows for _, answer in row.segments}
    assert answered == {"different"}


def test_records_and_pairs_survive_their_files(tmp_path: Path) -> None:
    records, pairs = [UTTERANCE, OVERLAP, SCENE], [Pair(0, 2, same=False)]
    write_manifests(tmp_path, records, pairs)
    assert read_records(tmp_path) == records
    assert read_pairs(tmp_path) == pairs
    assert (tmp_path / "aac.jsonl").read_text().count("\n") == 1


def test_pairs_are_half_of_one_speaker_and_never_of_one_recording() -> None:
    records = [
        Record(
            path=f"{i}", transcript="x", gender=("male", "female")[i % 2], emotion="sad", speaker=f"{i % 4}"
        )
        for i in range(40)
    ]
    pairs = draw_pairs(records, 400, Random(0))
    assert all(pair.first != pair.second for pair in pairs)
    assert all(pair.same == (records[pair.first].speaker == records[pair.second].speaker) for pair in pairs)
    assert sum(pair.same for pair in pairs) == 200
    for share, least, most in ((0.2, 0.05, 0.3), (0.9, 0.75, 0.95)):
        two = [pair for pair in draw_pairs(records, 400, Random(0), share) if not pair.same]
        alike = sum(records[pair.first].gender == records[pair.second].gender for pair in two)
        assert least < alike / len(two) < most


def test_pairs_may_be_of_speakers_of_one_voice_and_gender() -> None:
    records = [
        Record(path=f"{i}", gender="male", emotion="sad", speaker=f"{i % 20}", voice=f"{i % 10}")
        for i in range(100)
    ]

    def share_of_twins(twins: float) -> float:
        pairs = draw_pairs(records, 400, Random(0), 1.0, twins)
        two = [(records[pair.first], records[pair.second]) for pair in pairs if not pair.same]
        assert len(two) == 200
        assert all(one.speaker != other.speaker for one, other in two)
        return sum(one.voice == other.voice for one, other in two) / len(two)

    assert share_of_twins(0.0) < 0.15
    assert 0.3 < share_of_twins(0.4) < 0.6
    assert share_of_twins(1.0) == 1.0


def test_an_order_names_its_drink_in_both_languages() -> None:
    for seed in range(100):
        english, german = draw_order(Random(seed))
        assert set(english) <= set("abcdefghijklmnopqrstuvwxyz ")
        assert "{" not in german
        assert ("mokka" in german) == ("mocha" in english)


def test_an_order_of_given_slots_says_their_words_and_no_others() -> None:
    slots = {"coffeeDrink": "Iced Mocha", "milkAmount": " a bit of soy milk", "size": "twelve ounce"}
    orders = {draw_order_of(slots, Random(seed)) for seed in range(60)}
    assert len(orders) > 10
    for english, german in orders:
        assert slot_recall(slots, english) == (9, 9)
        assert "sugar" not in english
        assert all(part in german for part in ("eismokka", "ein wenig sojamilch", "zwölf unzen"))
    with pytest.raises(KeyError, match="gin"):
        draw_order_of({"coffeeDrink": "gin"}, Random(0))


def test_the_text_that_was_said_is_the_likeliest() -> None:
    said = "a latte"
    log_probs = torch.full((30, len(LETTERS) + 1), -6.0)
    for frame in range(30):  # each letter in two frames, a blank between any two
        position, part = divmod(frame, 4)
        letter = LETTERS.index(said[position]) if position < len(said) and part < 2 else len(LETTERS)
        log_probs[frame, letter] = 0.0
    nats = negative_log_likelihoods(log_probs.log_softmax(-1), ["a latte", "an espresso", "a later"])
    assert int(nats.argmin()) == 0


def test_a_folder_of_prompts_names_its_speaker_and_the_gender(tmp_path: Path) -> None:
    for name in ("en_US_f_Allison", "it_IT_m_Carlo", "en_US", "digits", "a_b_c_d"):
        (tmp_path / name).mkdir()
    (tmp_path / "fr_CA_f_June").touch()  # no folder
    assert prompt_speakers(tmp_path) == {"en_US_f_Allison": "female", "it_IT_m_Carlo": "male"}


def test_prompts_that_are_silence_or_too_short_or_long_are_not_measured(tmp_path: Path) -> None:
    durations_s = {"silence/2": 2.0, "vm-intro": 2.0, "beep": 0.3, "demo-instruct": 9.0}
    for name, duration_s in durations_s.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(round(8000 * duration_s)), 8000)
    assert [name for name in durations_s if is_a_sentence(tmp_path / f"{name}.wav")] == ["vm-intro"]


def test_a_gender_counts_where_it_is_the_whole_answer() -> None:
    assert share_of("male", ["male", "female", "male voice", "male"]) == {"num_examples": 4, "accuracy": 0.5}
    assert share_of("male", []) == {"num_examples": 0, "accuracy": 0.0}


def test_a_low_voice_is_a_man_s_and_a_high_one_a_woman_s() -> None:
    seconds = np.arange(16_000) / 16_000

    def voice(pitch_hz: float) -> np.ndarray:
        return sum(np.sin(2 * np.pi * pitch_hz * n * seconds) / n for n in range(1, 20)).astype(np.float32)

    pitches = [median_pitch_hz(voice(hz)) for hz in (110.0, 168.0, 220.0)]
    np.testing.assert_allclose(pitches, [110, 168, 220], rtol=0.02)
    assert [likely_gender(hz) for hz in pitches] == ["male", None, "female"]
    assert likely_gender(median_pitch_hz(np.zeros(16_000, dtype=np.float32))) is None


def test_about_a_quarter_of_recorded_orders_is_held_out() -> None:
    assert 0.2 < sum(is_held_out(f"{number}.flac") for number in range(1000)) / 1000 < 0.3


def test_a_corpus_takes_another_one_repeatedly() -> None:
    one = Corpus([UTTERANCE], [np.zeros((128, 9))], [Pair(0, 0, same=True)])
    both = one.with_more(Corpus([OVERLAP], [np.ones((128, 5))], []), 3)
    assert both.records == [UTTERANCE, OVERLAP, OVERLAP, OVERLAP]
    assert [mel.shape[1] for mel in both.mels] == [9, 5, 5, 5]
    assert both.pairs == one.pairs


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_sound_of_its_own_draw(name: str) -> None:
    first, again, other = (make_event(name, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert 0.7 * 16_000 < len(first) < 4 * 16_000
    assert len(first) != len(other) or not np.array_equal(first, other)


def test_degraded_recordings_are_finite_and_never_clipped() -> None:
    wave = make_event("bird", np.random.default_rng(0))
    for seed in range(30):
        out = acoustics.degrade(wave, np.random.default_rng(seed))
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 1.0
        assert len(out) >= len(wave)


def test_a_caption_names_every_event_of_its_scene() -> None:
    for seed in range(30):
        wave, caption, sounds = mixtures.scene(Random(seed), np.random.default_rng(seed))
        assert np.isfinite(wave).all()
        assert all(EVENTS[name][1] in caption for name in sounds)


def test_an_overlap_holds_both_speakers() -> None:
    first, second = np.ones(16_000, np.float32), np.ones(16_000, np.float32)
    out = mixtures.overlap(first, second, Random(0))
    assert 16_000 * 1.4 <= len(out) <= 16_000 * 1.9
    assert out[0] == 1
    assert out[15_999] > 1.5


def test_augmented_mels_keep_their_form() -> None:
    mels = torch.randn(3, 128, 200)
    out, lengths = augment(mels, torch.tensor([200, 150, 90]), torch.Generator().manual_seed(0))
    assert out.shape[:2] == mels.shape[:2]
    assert out.shape[2] % 4 == 0
    assert int(lengths.max()) <= out.shape[2]


def test_slot_recall_counts_words() -> None:
    slots = {"coffeeDrink": "iced mocha", "milkAmount": " milk"}
    assert slot_recall(slots, "a small iced coffee with milk") == (2, 3)


def test_rows_about_two_recordings_have_both_clips(tokenizer) -> None:
    maker = RowMaker(tokenizer, Random(0))
    pair = Pair(0, 1, same=True)
    row = maker.two(pair, [UTTERANCE, UTTERANCE], unprompted=False, degrade=False)
    packed = pack([row], [(5, 3)], tokenizer)
    assert row.clips == (0, 1)
    assert packed.audio[0].nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 8, 9, 10]
    assert packed.position_ids[0, 12] == 12
    assert packed.attention_mask[0, 0, 12, :12].all()


def test_of_condensed_recordings_only_the_speakers_are_asked(tokenizer) -> None:
    def answers(condensed: bool) -> set[str]:
        maker, records = RowMaker(tokenizer, Random(0)), [UTTERANCE, UTTERANCE]
        options = {"unprompted": True, "degrade": False, "condensed": condensed}
        rows = [maker.two(Pair(0, 1, same=True), records, **options) for _ in range(20)]
        return {tokenizer.decode(answer[:-1]) for row in rows for _, answer in row.segments}

    both = " ".join([UTTERANCE.transcript] * 2)
    assert (answers(True), answers(False)) == ({"same"}, {"same", both})


def test_an_instruction_is_never_degraded_to_nothing() -> None:
    rng = Random(0)
    assert all(instruction(task, rng, degrade=True).strip() for task in TASKS for _ in range(200))


def logits_of(model, tokenizer, rows: list[Row], audio: torch.Tensor) -> list[torch.Tensor]:
    """Logits of the answers of each row, in order; the audio of every row is ``audio`` [tokens, hidden]."""
    packed = pack(rows, [(len(audio),)] * len(rows), tokenizer)
    decoder = model.model.language_model
    embeds = decoder.embed_tokens(packed.ids)
    embeds = embeds.masked_scatter(packed.audio[..., None], audio.repeat(len(rows), 1))
    hidden = decoder(
        inputs_embeds=embeds,
        attention_mask={"full_attention": packed.attention_mask},
        position_ids=packed.position_ids,
    ).last_hidden_state
    return [model.lm_head(hidden[b, packed.targets[b] != -100]) for b in range(len(rows))]


def plain_logits(model, tokenizer, segment: tuple[list[int], list[int]], audio: torch.Tensor) -> torch.Tensor:
    """The same answer's logits from an ordinary causal forward of prompt and answer."""
    bos, eos = tokenizer.convert_tokens_to_ids(["<|audio_bos|>", "<|audio_eos|>"])
    prompt, answer = segment
    embed = model.model.language_model.embed_tokens
    rest = torch.tensor([eos, *prompt, *answer[:-1]])
    embeds = torch.cat([embed(torch.tensor([bos])), audio, embed(rest)])[None]
    hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state[0]
    return model.lm_head(hidden[-len(answer) :])


@torch.no_grad()
def test_packed_segments_equal_separate_sequences(model, tokenizer) -> None:
    audio = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    end = tokenizer.eos_token_id
    prompted = [([30, 31, 32], [40, 41, end]), ([33], [42, end]), ([34, 35], [43, 44, 45, end])]
    unprompted = [([], [46, 47, end]), ([], [48, end])]
    rows = [Row((0,), prompted), Row((1,), unprompted)]
    for segments, packed in zip(
        (prompted, unprompted), logits_of(model, tokenizer, rows, audio), strict=True
    ):
        alone = torch.cat([plain_logits(model, tokenizer, segment, audio) for segment in segments])
        torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_split_heads_compute_the_same_function(model) -> None:
    fine = split_heads(model).eval()
    assert fine.config.text_config.num_attention_heads == 256
    embeds = torch.randn(2, 9, 256, generator=torch.Generator().manual_seed(1))
    expected = model.model.language_model(inputs_embeds=embeds).last_hidden_state
    actual = fine.model.language_model(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_a_shard_is_decided_by_its_arguments(tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        (tmp_path / name / "audio").mkdir(parents=True)
        records = make_shard(tmp_path / name, "dev", 0, 6, seed=0)  # of espeak-ng's voice
        made.append((records, [(tmp_path / name / r.path).read_bytes() for r in records]))
    assert made[0] == made[1]
    assert {record.gender for record in made[0][0]} <= {"male", "female", None}
    (tmp_path / "clean" / "audio").mkdir(parents=True)
    clean = make_shard(tmp_path / "clean", "dev", 0, 6, seed=0, clean=True)
    spoken = [replace(record, caption=None, sounds=()) for record in made[0][0] if record.speaker]
    assert clean == spoken
    waves = [[soundfile.read(tmp_path / name / r.path)[0] for r in clean] for name in ("clean", "first")]
    noise = [[np.abs(wave[:400]).max() for wave in of] for of in waves]  # before the first word
    assert max(noise[0]) == 0 < min(noise[1])


def test_the_optimizer_moves_matrices_and_the_rest_but_nothing_frozen() -> None:
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)])
    module = torch.nn.ModuleDict({"layers": layers, "head": torch.nn.Linear(8, 1)})
    layers[0].requires_grad_(False)
    before = [parameter.clone() for parameter in module.parameters()]
    optimizer, inputs = MatrixOptimizer([module]), torch.randn(32, 8)
    losses = []
    for _ in range(60):
        hidden = inputs
        for layer in layers:
            hidden = torch.tanh(layer(hidden))
        loss = (module["head"](hidden) - inputs[:, :1]).square().mean()
        losses.append(loss.item())
        optimizer.step(loss, 0.02)
    assert losses[-1] < 0.5 * losses[0]
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert changed == [False, False, *[True] * 6]


def test_the_average_of_the_weights_reaches_back_by_a_share_of_the_steps() -> None:
    layer = torch.nn.Linear(1, 1)
    average = WeightAverage([layer], steps=100)
    for step in range(1, 101):
        torch.nn.init.constant_(layer.weight, step)
        average.update()
    average.apply()
    assert 100 - 35 < layer.weight.item() < 100 - 25
