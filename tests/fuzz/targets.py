"""What must hold for any bytes, wherever they come from: read, or refused with the house's error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lalm.errors import HeadMaskError
from lalm.head_mask import MaskFile
from lalm.task import TaskSpec
from training.errors import ManifestError
from training.manifest import load_manifest

MASK_FILE: dict[str, Any] = {
    "format": "ahamask/1",
    "task": {
        "name": "asr-gr",
        "title": "Transcript and gender",
        "output": {
            "kind": "fields",
            "separator": "|",
            "fields": [{"name": "transcript"}, {"name": "gender", "labels": ["female", "male"]}],
        },
        "num_audios": 1,
        "max_new_tokens": 96,
    },
    "model": {
        "family": "qwen2_audio",
        "name": "toy",
        "fingerprint": "sha256:" + "0" * 64,
        "num_layers": 2,
        "num_heads": 4,
    },
    "heads": ["1010", "0111"],
    "training": {"seed": 1, "recipe": {"tau": [4.0, 0.05]}},
    "evaluation": {"wer": 0.1},
}
TASK = TaskSpec.model_validate(
    {"name": "asr", "title": "asr", "output": {"kind": "text"}, "max_new_tokens": 8}
)
ANNOTATION: dict[str, Any] = {"path": "a.wav", "text": "turn on the light", "task": "asr", "expand_wav": []}


def check_mask_file(content: bytes) -> None:
    """A mask file that is read is written as it was read; any other is a HeadMaskError."""
    path = Path("folder") / "asr-gr.json"
    try:
        mask_file = MaskFile.parse(content, path)
    except HeadMaskError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    encoded = mask_file.encode()
    again = MaskFile.parse(encoded, path)
    assert again.encode() == encoded
    assert again.head_mask == mask_file.head_mask


def check_manifest(content: bytes, folder: Path) -> None:
    """A manifest that is read has examples; any other is a ManifestError. `folder` has a file a.wav."""
    path = folder / "manifest.jsonl"
    path.write_bytes(content)
    try:
        manifest = load_manifest(path, TASK)
    except ManifestError:
        return
    assert manifest.examples


def seeds(value: dict[str, Any]) -> list[bytes]:
    """Good files to begin with: of one line, and of many."""
    return [json.dumps(value).encode(), json.dumps(value, indent=2).encode()]
