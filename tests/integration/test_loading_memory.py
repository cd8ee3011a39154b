"""Loading needs no more of the host's memory than the weights, and one file of the checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from tests.toy_hf import WRITERS

FAMILIES = ("voxtral", "audioflamingo3", "glmasr", "qwen3_asr", "qwen2_5_omni_thinker", "granite_speech")
SHARD_BYTES = 26_000_000  # three matrices of 8.4 MB
MARGIN_BYTES = 8_000_000  # tokenizers, modules, what Python keeps


@pytest.fixture(scope="module")
def folders(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Toys of every family with a decoder of 75 MB in float16, in files of at most `SHARD_BYTES`."""
    root = tmp_path_factory.mktemp("loading")
    toys = [toy_checkpoint, *(WRITERS[name](root / name) for name in FAMILIES)]
    return [enlarged(toy, root / f"large-{toy.name}") for toy in toys]


def enlarged(toy: Path, folder: Path) -> Path:
    config: Any = AutoConfig.from_pretrained(toy)
    config.get_text_config().intermediate_size = 65_536
    model = getattr(transformers, json.loads((toy / "config.json").read_text())["architectures"][0])(config)
    model.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD_BYTES)
    for path in toy.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "quantize", "size"),  # of what is loaded, relative to the files
    [("float16", "none", 1), ("float32", "none", 2), ("float16", "int8", 0.5)],
)
def test_no_more_than_the_weights_and_one_file(
    dtype: str, quantize: str, size: float, folders: list[Path]
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.loading_memory", dtype, quantize, *map(str, folders)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed counts no longer
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(folders)
    for folder, figures in zip(folders, found, strict=True):
        files = [path.stat().st_size for path in folder.glob("*.safetensors")]
        assert len(files) == 3
        assert figures["weights"] == pytest.approx(sum(files) * size, rel=0.05)
        assert figures["beyond"] < max(files) + MARGIN_BYTES, (folder, figures)
