"""Synthesised sound events, each with the clause that a caption says of it.

Every event is a function of a random generator that returns float32 [num_samples] at 16 kHz, peak-normalised,
1 to 2.5 s long. `EVENTS` names them; a caption is made of their clauses (`training.tiny.mixtures`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, lfilter, sosfilt

from training.tiny.waves import SAMPLE_RATE_HZ, Wave

Generator = np.random.Generator
Signal = NDArray[np.float64]


def _time(rng: Generator, low_s: float = 1.0, high_s: float = 2.5) -> Signal:
    return np.arange(int(rng.uniform(low_s, high_s) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _phase(frequency_hz: Signal) -> Signal:
    return 2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE_HZ


def _band(noise: Signal, low_hz: float, high_hz: float) -> Signal:
    sos = butter(2, [low_hz, high_hz], btype="bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    return np.asarray(sosfilt(sos, noise))


def _scatter(length: int, times_s: list[float], grain: Callable[[], Signal]) -> Signal:
    """Grains added at the given times."""
    out = np.zeros(length)
    for time_s in times_s:
        start, piece = int(time_s * SAMPLE_RATE_HZ), grain()
        stop = min(length, start + len(piece))
        if start < stop:
            out[start:stop] += piece[: stop - start]
    return out


def _struck(rng: Generator, length_s: float, partials_hz: list[float], decay_s: float) -> Signal:
    t = np.arange(int(length_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    amplitudes = [rng.uniform(0.4, 1.0) / (1 + 0.5 * i) for i in range(len(partials_hz))]
    rings = [
        a * np.sin(2 * np.pi * f * t) * np.exp(-t * (1 + 0.6 * i) / decay_s)
        for i, (a, f) in enumerate(zip(amplitudes, partials_hz, strict=True))
    ]
    return np.asarray(np.sum(rings, axis=0))


def siren(rng: Generator) -> Signal:
    t = _time(rng, 1.5, 2.5)
    sweep = np.sin(2 * np.pi * rng.uniform(0.4, 1.2) * t + rng.uniform(0, 6))
    frequency_hz = rng.uniform(750, 1000) * (1 + rng.uniform(0.2, 0.4) * sweep)
    return np.asarray(np.tanh(3 * np.sin(_phase(frequency_hz))))


def bell(rng: Generator) -> Signal:
    base = rng.uniform(400, 900)
    partials = [base * ratio for ratio in (1.0, 2.0, 2.76, 4.07, 5.4)]
    strokes = [float(rng.uniform(0, 0.2)) + 0.7 * i for i in range(int(rng.integers(1, 4)))]
    return _scatter(
        int(2.3 * SAMPLE_RATE_HZ), strokes, lambda: _struck(rng, 1.8, partials, rng.uniform(0.4, 0.8))
    )


def rain(rng: Generator) -> Signal:
    t = _time(rng, 1.5, 2.5)
    hiss = _band(rng.standard_normal(len(t)), 1_000, 7_000) * 0.3
    drops = [float(x) for x in rng.uniform(0, t[-1], int(rng.uniform(150, 400) * t[-1]))]

    def drop() -> Signal:
        n = np.arange(int(rng.uniform(0.002, 0.006) * SAMPLE_RATE_HZ))
        return (
            rng.uniform(0.2, 1)
            * np.sin(2 * np.pi * rng.uniform(1500, 6000) * n / SAMPLE_RATE_HZ)
            * np.hanning(len(n))
        )

    return hiss + _scatter(len(t), drops, drop)


def engine(rng: Generator) -> Signal:
    t = _time(rng, 1.5, 2.5)
    base = rng.uniform(28, 60) * (1 + rng.uniform(-0.2, 0.2) * t / t[-1])
    pulse = np.maximum(0, np.sin(_phase(base))) ** 4
    rough = _band(rng.standard_normal(len(t)), 80, 900) * (0.3 + pulse)
    return np.asarray(pulse - pulse.mean() + 0.8 * rough)


def knock(rng: Generator) -> Signal:
    gap = rng.uniform(0.18, 0.32)
    times = [0.1 + gap * i for i in range(int(rng.integers(2, 6)))]
    body = rng.uniform(120, 260)

    def hit() -> Signal:
        thud = _struck(rng, 0.12, [body, body * 2.3, body * 3.9], 0.02)
        click = _band(rng.standard_normal(len(thud)), 300, 2_500)
        return thud + 0.3 * click * np.exp(-np.arange(len(thud)) / 120)

    return _scatter(int((times[-1] + 0.3) * SAMPLE_RATE_HZ), times, hit)


def bird(rng: Generator) -> Signal:
    base = rng.uniform(2_500, 4_500)
    times = np.cumsum(rng.uniform(0.1, 0.3, int(rng.integers(5, 9)))).tolist()

    def chirp() -> Signal:
        n = np.arange(int(rng.uniform(0.05, 0.14) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        bend = np.linspace(0, 1, len(n)) * rng.uniform(-900, 900)
        return np.sin(_phase(base * rng.uniform(0.9, 1.15) + bend)) * np.hanning(len(n))

    return _scatter(int((times[-1] + 0.3) * SAMPLE_RATE_HZ), times, chirp)


def beep(rng: Generator) -> Signal:
    frequency, length_s, gap = rng.uniform(600, 2_000), rng.uniform(0.08, 0.25), rng.uniform(0.3, 0.5)
    n = np.arange(int(length_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * frequency * n)
    times = [0.1 + gap * i for i in range(int(rng.integers(2, 5)))]
    return _scatter(int((times[-1] + 0.4) * SAMPLE_RATE_HZ), times, lambda: tone)


def phone(rng: Generator) -> Signal:
    t = _time(rng, 1.6, 2.5)
    low = rng.uniform(400, 480)
    warble = np.sign(np.sin(2 * np.pi * rng.uniform(18, 25) * t))
    tone = np.sin(2 * np.pi * low * t) + np.sin(2 * np.pi * low * 1.2 * t + warble)
    return tone * ((t % 1.1) < 0.65)


def wind(rng: Generator) -> Signal:
    t = _time(rng, 1.5, 2.5)
    low = lfilter([1], [1, -0.97], rng.standard_normal(len(t)))
    gusts = 0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(0.3, 0.9) * t + rng.uniform(0, 6))
    return np.asarray(_band(low, 100, rng.uniform(500, 1_000)) * gusts)


def clock(rng: Generator) -> Signal:
    gap = rng.uniform(0.22, 0.5)
    times = np.arange(0.05, 2.0, gap).tolist()
    high = rng.uniform(2_500, 4_500)
    return _scatter(
        int(2.1 * SAMPLE_RATE_HZ),
        times,
        lambda: _struck(rng, 0.03, [high, high * 1.7], rng.uniform(0.002, 0.005)),
    )


def dog(rng: Generator) -> Signal:
    base = rng.uniform(280, 520)
    times = (0.1 + np.cumsum(rng.uniform(0.3, 0.5, int(rng.integers(2, 4))))).tolist()

    def bark() -> Signal:
        n = np.arange(int(rng.uniform(0.12, 0.2) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        shape = np.hanning(len(n)) ** 0.5
        bend = base * (1 + 0.5 * np.hanning(len(n)))
        voiced = sum(np.sin(k * _phase(bend)) / k for k in range(1, 8))
        return np.asarray((voiced + 0.6 * rng.standard_normal(len(n))) * shape)

    return _scatter(int((times[-1] + 0.4) * SAMPLE_RATE_HZ), times, bark)


def applause(rng: Generator) -> Signal:
    t = _time(rng, 1.5, 2.5)
    claps = [float(x) for x in rng.uniform(0, t[-1], int(rng.uniform(25, 60) * t[-1]))]

    def clap() -> Signal:
        noise = _band(rng.standard_normal(400), rng.uniform(600, 1_200), rng.uniform(2_000, 4_000))
        return np.asarray(rng.uniform(0.3, 1) * noise * np.exp(-np.arange(400) / 70))

    return _scatter(len(t), claps, clap)


# The clause that a caption says of each event.
EVENTS: dict[str, tuple[Callable[[Generator], Signal], str]] = {
    "siren": (siren, "a siren wails"),
    "bell": (bell, "a bell rings"),
    "rain": (rain, "rain falls"),
    "engine": (engine, "an engine runs"),
    "knock": (knock, "someone knocks"),
    "bird": (bird, "a bird sings"),
    "beep": (beep, "a machine beeps"),
    "phone": (phone, "a phone rings"),
    "wind": (wind, "wind blows"),
    "clock": (clock, "a clock ticks"),
    "dog": (dog, "a dog barks"),
    "applause": (applause, "people clap"),
}
STEADY = ("rain", "engine", "wind", "applause", "clock", "siren")  # can go on behind something else


def make_event(name: str, rng: Generator) -> Wave:
    """One event, peak 0.25, float32 [num_samples] at 16 kHz."""
    signal = EVENTS[name][0](rng)
    return np.asarray(0.25 * signal / np.abs(signal).max(), dtype=np.float32)
