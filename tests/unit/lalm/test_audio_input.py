from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile as sf

from lalm.audio import decode_audio
from lalm.audio_input import AudioInput
from lalm.errors import AudioTooLongError


def stereo(rate_hz: int) -> bytes:
    """Half a second, 0.5 on the left, -0.25 on the right."""
    samples = np.tile(np.array([0.5, -0.25], dtype=np.float32), (rate_hz // 2, 1))
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate_hz, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(("channel", "level"), [(None, 0.125), (0, 0.5), (1, -0.25), (5, -0.25)])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_one_channel_or_the_mean_of_all(rate_hz: int, channel: int | None, level: float) -> None:
    waveform = decode_audio(stereo(rate_hz), channel=channel)
    assert (waveform.size, waveform.dtype) == (8_000, np.float32)
    assert waveform.flags.c_contiguous
    np.testing.assert_allclose(waveform[1_000:7_000], level, atol=1e-3)


def test_recordings_stay_apart_or_are_joined_by_a_tenth_of_a_second() -> None:
    first, second = np.full(8, 0.5, dtype=np.float32), np.full(4, -0.5, dtype=np.float32)
    assert [clip.size for clip in AudioInput().clips([first, second], 1.0)] == [8, 4]
    (joined,) = AudioInput(joined=True).clips([first, second], 1.0)
    np.testing.assert_array_equal(joined, np.concatenate([first, np.zeros(1_600), second]))
    assert joined.dtype == np.float32


def test_joined_recordings_are_refused_not_cut() -> None:
    second = np.zeros(16_000, dtype=np.float32)
    joining = AudioInput(joined=True)
    assert joining.clips([second, second], 2.1)[0].size == 33_600
    with pytest.raises(AudioTooLongError, match=r"last 2\.1 s together; 2 s are allowed") as caught:
        joining.clips([second, second], 2.0)
    assert caught.value.limit_s == 2.0
    # alone it is the decoder's to judge
    assert len(joining.clips([second], 0.5)) == 1
