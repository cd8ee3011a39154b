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
from safetensors.torch import save_file
from transformers import AutoConfig

from benchmarks.random_salmonn import Shape, write_random_salmonn
from tests.salmonn_toy import MODEL_FILE
from tests.toy_hf import WRITERS

FAMILIES = ("voxtral", "audioflamingo3", "glmasr", "qwen3_asr", "qwen2_5_omni_thinker", "granite_speech")
SHARD_BYTES = 26_000_000  # three matrices of 8.4 MB
MARGIN_BYTES = 8_000_000  # tokenizers, modules, what Python keeps
# a decoder of 133 MB in float16 and four files, encoders and bridge of 80 MB in float32
SALMONN = Shape(3, 8, 1024, 4096, 8000, 2, 512, 8, 2, 512, 8, 256, 384, 4, num_shards=4)

needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")


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


def measured(loads: list[tuple[str, str, Path]]) -> list[dict[str, int]]:
    """What `tests.loading_memory` prints of models, loaded one after the other in a process of their own.

    loads: dtype, quantize, and checkpoint or model file.
    """
    process = subprocess.run(
        [sys.executable, "-m", "tests.loading_memory", *(str(part) for load in loads for part in load)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed counts no longer
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


@needs_linux
@pytest.mark.parametrize(
    ("dtype", "quantize", "size"),  # of what is loaded, relative to the files
    [("float16", "none", 1), ("float32", "none", 2), ("float16", "int8", 0.5)],
)
def test_no_more_than_the_weights_and_one_file(
    dtype: str, quantize: str, size: float, folders: list[Path]
) -> None:
    found = measured([(dtype, quantize, folder) for folder in folders])
    for folder, figures in zip(folders, found, strict=True):
        files = [path.stat().st_size for path in folder.glob("*.safetensors")]
        assert len(files) == 3
        assert figures["weights"] == pytest.approx(sum(files) * size, rel=0.05)
        assert figures["beyond"] < max(files) + MARGIN_BYTES, (folder, figures)


@pytest.fixture(scope="module")
def salmonns(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Model files of the same weights: the decoder's in pickles, and in safetensors."""
    pickles = write_random_salmonn(tmp_path_factory.mktemp("salmonn") / "bin", SALMONN)
    folder = pickles.parent.with_name("safetensors")
    shutil.copytree(pickles.parent, folder)
    vicuna = folder / "vicuna"
    for path in vicuna.glob("*.bin"):
        save_file(torch.load(path, weights_only=True), vicuna / renamed(path.name), metadata={"format": "pt"})
        path.unlink()
    index = vicuna / "pytorch_model.bin.index.json"
    (vicuna / "model.safetensors.index.json").write_text(renamed(index.read_text()))
    index.unlink()
    return [pickles, folder / pickles.name]


def renamed(text: str) -> str:
    return text.replace("pytorch_model", "model").replace(".bin", ".safetensors")


@needs_linux
def test_salmonn_needs_no_more_than_its_weights_and_one_file_of_its_decoder(salmonns: list[Path]) -> None:
    precisions = [("float16", "none"), ("float32", "none"), ("float16", "int8")]
    loads = [(*precision, model_file) for model_file in salmonns for precision in precisions]
    # the toy comes first: what is imported for the family is not of its size
    _, *found = measured([("float16", "int8", MODEL_FILE), *loads])
    for load, figures in zip(loads, found, strict=True):
        files = [path.stat().st_size for path in (load[-1].parent / "vicuna").glob("*model-*")]
        assert len(files) == 4
        assert figures["beyond"] < max(files), (load, figures)
        assert figures["peak"] < figures["weights"] + max(files), (load, figures)
