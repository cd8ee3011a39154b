"""Virtual speakers and the timbres of their voices."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy.signal import lfilter, welch

from training.tiny.studio import Studio, median_pitch_hz, resynthesise
from training.tiny.voices import PLAIN, VOICES, Prosody, Speaker, Timbre, Voice, draw_prosody, draw_speaker
from training.tiny.waves import SAMPLE_RATE_HZ, Wave

MOVED = Timbre(formants=(1.2, 1.0, 1.0, 1.0))


def vowel(pitch_hz: float, *formants_hz: float) -> Wave:
    """A second of pulses through resonances of 80 Hz."""
    wave = np.zeros(SAMPLE_RATE_HZ)
    wave[:: round(SAMPLE_RATE_HZ / pitch_hz)] = 1.0
    for hz in formants_hz:
        radius = np.exp(-np.pi * 80 / SAMPLE_RATE_HZ)
        wave = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * hz / SAMPLE_RATE_HZ), radius**2], wave)
    return np.asarray(0.5 * wave / np.abs(wave).max(), dtype=np.float32)


def pitch_spread(wave: Wave) -> float:
    """Standard deviation of the pitch of tenths of a second, in octaves."""
    stretches = np.array_split(wave, 10 * len(wave) // SAMPLE_RATE_HZ)
    return float(np.nanstd(np.log2([median_pitch_hz(stretch) for stretch in stretches])))


def peak_hz(wave: Wave, low: float, high: float) -> float:
    """Where the smoothed spectrum is highest between two frequencies."""
    hz, power = welch(wave, SAMPLE_RATE_HZ, nperseg=128)
    return float(hz[np.where((hz >= low) & (hz <= high), power, 0).argmax()])


def test_a_timbre_moves_a_formant_and_leaves_the_pitch() -> None:
    wave = vowel(120, 500, 2500)
    moved = resynthesise(wave, timbre=MOVED)
    assert len(moved) == pytest.approx(len(wave), abs=200)
    assert median_pitch_hz(moved) == pytest.approx(120, rel=0.02)
    assert peak_hz(moved, 250, 1000) == pytest.approx(600, abs=70)
    assert peak_hz(moved, 2000, 3000) == pytest.approx(2500, abs=130)
    assert peak_hz(resynthesise(wave), 250, 1000) == pytest.approx(500, abs=70)


def test_a_timbre_weighs_formants() -> None:
    wave = vowel(120, 500, 2500)

    def second_to_first(timbre: Timbre) -> float:
        hz, power = welch(resynthesise(wave, timbre=timbre), SAMPLE_RATE_HZ, nperseg=512)
        bands = [power[(hz > at - 300) & (hz < at + 300)].sum() for at in (500, 2500)]
        return float(10 * np.log10(bands[1] / bands[0]))

    louder = second_to_first(Timbre(heights=(0.7, 1.0, 1.5, 1.5))) - second_to_first(PLAIN)
    assert louder == pytest.approx(20 * np.log10(1.5 / 0.7), abs=2.0)


def test_breath_is_noise_between_the_harmonics() -> None:
    wave = vowel(125, 500, 2500)

    def noise_db(timbre: Timbre) -> float:
        hz, power = welch(resynthesise(wave, timbre=timbre), SAMPLE_RATE_HZ, nperseg=4096)
        harmonics = 125 * np.arange(8, 40)
        between = np.interp(harmonics + 62.5, hz, power).sum() / np.interp(harmonics, hz, power).sum()
        return float(10 * np.log10(between))

    assert noise_db(Timbre(breath=1.0)) > noise_db(PLAIN) + 3


def test_speakers_to_train_with_have_timbres_and_others_do_not() -> None:
    drawn = [draw_speaker(Random(seed), str(seed), "train") for seed in range(300)]
    assert 0.6 < sum(speaker.timbre != PLAIN for speaker in drawn) / len(drawn) < 0.8
    assert {speaker.timbre.klatt for speaker in drawn} == set(range(6))
    assert drawn[0] == draw_speaker(Random(0), "0", "train")
    assert 0.75 < min(speaker.liveliness for speaker in drawn) < 0.85
    assert 1.2 < max(speaker.liveliness for speaker in drawn) < 1.3
    heard = [draw_speaker(Random(seed), "x", "test") for seed in range(50)]
    assert {(speaker.timbre, speaker.liveliness) for speaker in heard} == {(PLAIN, 1.0)}


def test_only_voices_of_english_are_measured_with() -> None:
    assert {voice.english for voice in VOICES["train"]} == {True, False}
    assert all(voice.english for split in ("dev", "test") for voice in VOICES[split])  # type: ignore[index]


@pytest.mark.parametrize(
    "voice", [voice for split in VOICES.values() for voice in split], ids=lambda v: v.name
)
def test_a_voice_speaks_as_quickly_as_it_is_told(voice: Voice, tmp_path: Path) -> None:
    studio, prosody = Studio(tmp_path), Prosody(pitch=1.0, spread=1.0, rate=1.0, gain_db=0.0, tilt=0.0)

    def duration(rate: float) -> int:
        speaker = Speaker("a", voice, "male", 110, 1.0, rate)
        texts = "turn on the light in the kitchen", "call my brother at five", "play rock music", "no"
        return sum(len(studio.speak(text, speaker, prosody)) for text in texts)

    try:
        slow, quick = duration(0.7), duration(1.0)
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(f"needs what `make corpus` does: {error}")
    assert slow > 1.2 * quick


@pytest.mark.skipif(not shutil.which("text2wave"), reason="needs festival")
def test_a_voice_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    speaker = Speaker("a", Voice("festival", "of_nobody"), "male", 110, 1.0, 0.9)
    (tmp_path / "speech.wav").write_bytes(b"of an earlier utterance")
    with pytest.raises(FileNotFoundError, match="of_nobody is not installed: apt-get install festival "):
        Studio(tmp_path).speak("two", speaker, draw_prosody(Random(0), "sad"))


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_a_lively_speaker_moves_the_pitch_more(tmp_path: Path) -> None:
    studio, prosody = Studio(tmp_path), draw_prosody(Random(0), "neutral")

    def octaves(liveliness: float) -> float:
        speaker = Speaker("a", Voice("espeak", "en-us"), "male", 110, 0.97, 0.9, liveliness=liveliness)
        return pitch_spread(studio.speak("turn on the light in the kitchen", speaker, prosody))

    assert octaves(1.27) > 1.2 * octaves(0.78)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_espeak_speaks_with_a_timbre(tmp_path: Path) -> None:
    studio = Studio(tmp_path)
    plain = Speaker("a", Voice("espeak", "en-us"), "male", 110, 0.97, 0.9)
    prosody = draw_prosody(Random(0), "neutral")
    spoken = {
        name: studio.speak("turn on the light", replace(plain, timbre=timbre), prosody)
        for name, timbre in (("plain", PLAIN), ("moved", MOVED), ("klatt", Timbre(klatt=2)))
    }
    first = spoken["plain"]
    for name in ("moved", "klatt"):
        wave = spoken[name]
        assert len(wave) == pytest.approx(len(first), rel=0.03)
        assert median_pitch_hz(wave) == pytest.approx(median_pitch_hz(first), rel=0.1)
        size = min(len(wave), len(first))
        assert np.abs(wave[:size] - first[:size]).max() > 0.01
