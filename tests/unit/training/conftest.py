from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.toy import toy_waveform
from training.config import TrainConfig, parse_config

MakeRecipe = Callable[..., TrainConfig]


@pytest.fixture
def make_recipe(tmp_path: Path) -> MakeRecipe:
    """A recipe for gender recognition on twelve short tones; keyword arguments go into its sections."""
    for split, count in (("train", 12), ("valid", 5)):
        lines = []
        for number in range(count):
            name = f"{split}-{number}.wav"
            waveform = toy_waveform(0.2 + 0.05 * (number % 4), seed=number + 100 * (split == "valid"))
            soundfile.write(tmp_path / name, waveform, 16_000)
            lines.append(json.dumps({"path": name, "text": ("male", "female")[number % 2], "task": "gr"}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))

    def make(
        run: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        refine: dict[str, Any] | None = None,
        **optim: Any,
    ) -> TrainConfig:
        values = {
            "preset": "short",
            "checkpoint": "given by the test",
            "out": tmp_path / "masks" / "gr.json",
            "instruction": "What is said?",
            "task": {
                "name": "gr",
                "title": "Gender",
                "output": {"kind": "label", "labels": ["male", "female"]},
                "max_new_tokens": 4,
            },
            "data": {
                "train": tmp_path / "train.jsonl",
                "valid": tmp_path / "valid.jsonl",
                "test": tmp_path / "valid.jsonl",
                **(data or {}),
            },
            "refine": refine,
            "optim": {"steps": 20, "batch_size": 4, **optim},
            "run": {"folder": tmp_path / "run", "valid_every": 7, "checkpoint_every": 6, **(run or {})},
        }
        return parse_config(values, "gr.toml")

    return make
