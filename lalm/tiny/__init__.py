"""The embedded default model, shipped with the package: a small Qwen2-Audio in the Hugging Face format."""

from __future__ import annotations

from pathlib import Path

NAME = "tiny-lalm"
CHECKPOINT = Path(__file__).parent / "checkpoint"
