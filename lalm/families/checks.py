"""What is checked of every checkpoint of transformers when it is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lalm.audio import SAMPLE_RATE_HZ
from lalm.errors import ModelError


def check_complete(folder: Path, missing: Collection[str]) -> None:
    """No tensor of the model may be missing from the checkpoint in `folder`.

    Raises:
        ModelError: there are names in `missing`.
    """
    if missing:
        raise ModelError(f"{folder}: {len(missing)} tensors are missing, {min(missing)} for one")


def of_whisper(encoder_config: Any) -> dict[str, int]:
    """What an encoder of Whisper's architecture needs of a feature extractor: rate, bins and window."""
    return {
        "sampling_rate": SAMPLE_RATE_HZ,
        "feature_size": encoder_config.num_mel_bins,
        "nb_max_frames": 2 * encoder_config.max_source_positions,
    }


def check_extractor(folder: Path, extractor: Any, wanted: Mapping[str, int]) -> None:
    """The feature extractor must be the encoder's: `wanted` has its attributes as the encoder needs them.

    Raises:
        ModelError: one of them is another.
    """
    for key, value in wanted.items():
        if (found := getattr(extractor, key, None)) != value:
            raise ModelError(f"{folder}: the feature extractor's {key} is {found}, the encoder needs {value}")
