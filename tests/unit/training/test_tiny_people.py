"""Recordings of people in the embedded model's corpus."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from training.tiny import natural
from training.tiny.natural import mostly_people
from training.tiny.pairs import draw_pairs
from training.tiny.people import LENGTH_S, PAUSE_S, PEOPLE, WORD_S, Gender, pieces_of, speak
from training.tiny.records import Record, Traits, answers
from training.tiny.studio import median_pitch_hz, resynthesise
from training.tiny.voices import VOICES, Voice, draw_speaker
from training.tiny.waves import SAMPLE_RATE_HZ, read_wave, trimmed

RATE_HZ = 22_050


def hum(hz: float, duration_s: float) -> np.ndarray:
    """Harmonics of a pitch, between two tenths of silence."""
    times = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    wave = sum(np.sin(2 * np.pi * hz * n * times) / n for n in range(1, 12))
    silence = np.zeros(RATE_HZ // 10)
    return np.concatenate([silence, 0.2 * wave, silence])


@pytest.fixture
def share(tmp_path: Path) -> Path:
    for number, duration_s in enumerate((0.5, 0.8, 9.0)):
        path = tmp_path / f"tuxpaint/stamps/animals/cat{number}_desc_ca.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, hum(110, duration_s), RATE_HZ)
    soundfile.write(path.with_name("cat_desc_fr.ogg"), hum(110, 0.5), RATE_HZ)
    return tmp_path


def test_a_person_says_several_things_one_behind_the_other(share: Path) -> None:
    pieces = pieces_of("stamps-ca", share)
    assert [path.name for path in pieces] == [f"cat{n}_desc_ca.ogg" for n in range(3)]
    said = [speak(pieces, Random(seed)) for seed in range(20)]
    assert np.array_equal(said[0], speak(pieces, Random(0)))
    durations = [len(wave) / SAMPLE_RATE_HZ for wave in said]
    assert min(durations) > LENGTH_S[0] - PAUSE_S[1]
    assert max(durations) < 2 * LENGTH_S[1]
    assert all(np.abs(wave[:400]).max() > 0.01 for wave in said)  # not the silence before


def test_who_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="letters-cs are not installed: apt-get install tuxpaint-st"):
        pieces_of("letters-cs", tmp_path)


def test_a_recording_of_nothing_stays_nothing() -> None:
    assert len(trimmed(np.zeros(0, dtype=np.float32))) == 0


def test_speech_is_made_quicker_with_its_pitch_as_it_was() -> None:
    wave = trimmed(np.asarray(hum(120, 2.0), dtype=np.float32))
    quick = resynthesise(wave, rate=1.25)
    assert len(quick) == pytest.approx(len(wave) / 1.25, rel=0.01)
    assert median_pitch_hz(quick) == pytest.approx(median_pitch_hz(wave), rel=0.03)


def test_people_lend_their_voices_mostly_to_their_own_gender() -> None:
    people = {voice for voice in VOICES["train"] if voice.engine == "people"}
    assert {voice.name for voice in people} == set(PEOPLE)
    drawn = [draw_speaker(Random(seed), str(seed), "train") for seed in range(4000)]
    own = Counter(s.gender == s.voice.gender for s in drawn if s.voice in people)
    assert 0.65 < own[True] / own.total() < 0.85
    assert not any(voice.engine == "people" for split in ("dev", "test") for voice in VOICES[split])  # type: ignore[index]
    assert not Voice("people", "stamps-ca", "male", english=False).has_emotions


def test_of_people_it_is_asked_who_they_are_and_not_what_they_say_or_feel() -> None:
    traits = Traits(110.0, 0.95, 0.9, 100.0, 0.7)
    records = [
        Record(path=f"{n}.flac", gender="male", speaker=name, voice="people/stamps-ca", traits=traits)
        for n, name in enumerate("aabb")
    ]
    assert answers(records[0]) == {"gr": "male"}
    pairs = draw_pairs(records, 20, Random(0))
    assert {pair.same for pair in pairs} == {True, False}
    as_they_are = [Record(path="c.flac", gender="male", speaker="c", voice="people/c")] * 2
    assert draw_pairs([*records, *as_they_are], 20, Random(0)) == pairs


def test_a_manifest_of_gender_is_mostly_people() -> None:
    people = [Record(path=f"p{n}.flac", gender="female", speaker="c", voice="people/c") for n in range(9)]
    drawn = [Record(path=f"d{n}.flac", gender="male", speaker="d", voice="people/c") for n in range(50)]
    rows = mostly_people(people, [*drawn, Record(path="s.flac", caption="a bell rings")], Random(0))
    assert sorted(row["path"] for row in rows if row["text"] == "female") == [r.path for r in people]
    assert len(rows) == len({row["path"] for row in rows}) == 10
    assert rows[0].keys() == {"path", "text", "task"}


def test_people_are_recorded_at_other_pitches_and_as_short_as_a_word(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        natural, "KINDS", {k: kind._replace(num_recordings=2) for k, kind in natural.KINDS.items()}
    )
    (tmp_path / "audio").mkdir()
    people = {"stamps-ca": PEOPLE["stamps-ca"]}
    records = natural.write_people(tmp_path, 0, people, share)
    assert len({record.path for record in records}) == 8
    assert {(r.gender, r.speaker, r.voice) for r in records} == {("male", "stamps-ca", "people/stamps-ca")}
    waves = {record.path: read_wave(tmp_path / record.path) for record in records}
    again = natural.write_people(tmp_path, 0, people, share)
    assert all(np.array_equal(waves[record.path], read_wave(tmp_path / record.path)) for record in again)


@pytest.mark.parametrize("gender", ["male", "female"])
def test_a_voice_is_moved_to_a_pitch_that_its_gender_has(gender: Gender) -> None:
    wave = trimmed(np.asarray(hum(120, 1.5), dtype=np.float32))
    moved = [natural.with_another_pitch(wave, gender, Random(seed)) for seed in range(8)]
    low, high = natural.MOVED_HZ[gender]
    assert all(0.95 * low < median_pitch_hz(each) < 1.05 * high for each in moved)
    assert len({len(each) for each in moved}) == 8


def test_a_word_is_one_thing_that_somebody_says(share: Path) -> None:
    words = [speak(pieces_of("stamps-ca", share)[:2], Random(seed), WORD_S) for seed in range(10)]
    assert all(len(word) < SAMPLE_RATE_HZ for word in words)
