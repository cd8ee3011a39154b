"""What a room, a microphone and a line do to a clean recording: noise, reverberation, band limits, codecs.

Every function takes and returns float32 [num_samples] at 16 kHz and draws from the generator it is given.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from training.tiny.waves import SAMPLE_RATE_HZ, Wave

Generator = np.random.Generator


def place(wave: Wave, rng: Generator) -> Wave:
    """Silence around the speech, 50 to 310 ms a side."""
    before, after = rng.integers(800, 5000, size=2)
    return np.pad(wave, (int(before), int(after)))


def reverberate(wave: Wave, rng: Generator) -> Wave:
    """A room: exponentially decaying noise behind the direct sound, RT60 of 0.1 to 0.6 s."""
    rt60_s = rng.uniform(0.1, 0.6)
    length = int(rt60_s * SAMPLE_RATE_HZ)
    decay = 10 ** (-3 * np.arange(length) / length)
    tail = rng.standard_normal(length) * decay
    tail[: int(0.002 * SAMPLE_RATE_HZ)] = 0
    tail *= 10 ** (rng.uniform(-12, 0) / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return np.asarray(fftconvolve(wave, tail)[: len(wave) + length // 3], dtype=np.float32)


def band_limit(wave: Wave, rng: Generator) -> Wave:
    """A telephone's or a cheap microphone's band: 8 kHz sampling, or a drawn high and low pass."""
    if rng.random() < 0.5:
        narrow = soxr.resample(wave, SAMPLE_RATE_HZ, 8_000)
        return np.asarray(soxr.resample(narrow, 8_000, SAMPLE_RATE_HZ), dtype=np.float32)
    low, high = rng.uniform(60, 350), rng.uniform(2_800, 7_500)
    band = butter(4, [low, high], btype="bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    return np.asarray(sosfilt(band, wave), dtype=np.float32)


def encode(wave: Wave, rng: Generator) -> Wave:
    """There and back through a lossy codec: MP3, Opus, Vorbis or 8-bit mu-law."""
    form, subtype, options = (
        ("MP3", "MPEG_LAYER_III", {"compression_level": float(rng.uniform(0.5, 0.95))}),
        ("OGG", "OPUS", {"compression_level": float(rng.uniform(0.5, 0.95))}),
        ("OGG", "VORBIS", {"compression_level": float(rng.uniform(0.3, 0.9))}),
        ("WAV", "ULAW", {}),
    )[int(rng.integers(4))]
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE_HZ, format=form, subtype=subtype, **options)
    file.seek(0)
    decoded, rate = soundfile.read(file, dtype="float32")
    return np.asarray(soxr.resample(decoded, rate, SAMPLE_RATE_HZ), dtype=np.float32)


def add_noise(wave: Wave, rng: Generator) -> Wave:
    """Coloured noise at 10 to 50 dB below the signal."""
    level = float(np.sqrt(np.mean(wave**2)))
    noise: NDArray[np.float64] = rng.standard_normal(len(wave))
    if rng.random() < 0.5:  # more of it at low frequencies, as rooms have
        noise = np.convolve(noise, np.ones(8) / np.sqrt(8), mode="same")
    return np.asarray(wave + noise * level * 10 ** (-rng.uniform(10, 50) / 20), dtype=np.float32)


def degrade(wave: Wave, rng: Generator) -> Wave:
    """A recording as it arrives: silence around it, a third in rooms, a quarter through narrow bands, noise,
    a fifth through a codec, and a drawn level; never clipped."""
    wave = place(wave, rng)
    if rng.random() < 0.35:
        wave = reverberate(wave, rng)
    if rng.random() < 0.25:
        wave = band_limit(wave, rng)
    wave = add_noise(wave, rng)
    if rng.random() < 0.2:
        wave = encode(wave, rng)
    gain = 10 ** (rng.uniform(-6, 3) / 20)
    peak = float(np.abs(wave).max())
    return np.asarray(wave * min(gain, 0.99 / max(peak, 1e-6)), dtype=np.float32)
