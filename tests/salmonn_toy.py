"""The toy SALMONN of tests/data/salmonn and what the reference implementation computes from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lalm.head_mask import HeadMask

DATA = Path(__file__).parent / "data" / "salmonn"
MODEL_FILE = DATA / "toy-salmonn.toml"
NUM_CLIPS = 3
CASES = ("nomask", "mask", "empty_nomask")
INSTRUCTION = "Recognize the speech and give me the transcription."


def waveform(clip: int) -> NDArray[np.float32]:
    """Channel 0 of a clip, float32 [num_samples] at 16 kHz."""
    samples, rate_hz = sf.read(DATA / "audio" / f"clip{clip}.flac", dtype="float32", always_2d=True)
    assert rate_hz == 16_000
    return np.ascontiguousarray(samples[:, 0])


class Reference:
    """Numbers of the reference implementation, in float32 on a CPU."""

    def __init__(self) -> None:
        self._tensors = load_file(DATA / "expected.safetensors")
        self.facts: dict[str, Any] = json.loads((DATA / "expected.json").read_text())

    def tensor(self, name: str) -> Tensor:
        """One tensor; those of a clip alone without their batch dimension."""
        tensor = self._tensors[name]
        return tensor[0] if name.startswith("clip") else tensor

    def case(self, clip: int, case: str) -> dict[str, Any]:
        """Token ids and texts of a clip in a case."""
        found: dict[str, Any] = self.facts["results"][f"clip{clip}.{case}"]
        return found


def instruction_of(case: str) -> str | None:
    return INSTRUCTION if case == "nomask" else None


def head_mask_of(case: str) -> HeadMask | None:
    """The published form of the mask: logits of heads and, last in each layer, of the feed-forward."""
    if case != "mask":
        return None
    logits = torch.load(DATA / "mask.pth", weights_only=True)["model"]["tensor"].reshape(4, 7)
    return HeadMask((torch.sigmoid(logits[:, :6]) >= 0.5).numpy())
