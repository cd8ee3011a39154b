"""The recordings of samples/ in which one person speaks; in the others are sounds, or two people at once."""

from __future__ import annotations

import json
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[1] / "samples"
_EXPECTED = json.loads((_FOLDER / "expected.json").read_text(encoding="utf-8"))

SPOKEN = sorted(_FOLDER / entry["file"] for entry in _EXPECTED if entry["task"] == "asr")
