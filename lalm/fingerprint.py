"""The fingerprint of a checkpoint: which weights a head mask was made for.

Taken from the files, not from the loaded model, so that neither the dtype nor the device it is loaded with
matters, nor how the checkpoint is split into files. It is the SHA-256 over

1. the essentials of the configuration, as JSON with sorted keys;
2. every tensor of the checkpoint, in the order of the names: name, stored dtype and shape, and stored bytes:
   all of them up to 1 MiB, beyond that 16 whole rows, evenly spaced from the first to the last.

Every tensor takes part, the audio encoder's too: a head mask is trained on what the encoder hands over. For
7 B parameters that is less than 100 MB to read. Two checkpoints that differ only in rows that are not sampled
share a fingerprint: it tells models apart, it is no protection against a forger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from lalm.errors import ModelError

WHOLE_TENSOR_BYTES = 2**20
NUM_SAMPLED_ROWS = 16

_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"  # the index does not name it


class StoredTensor(Protocol):
    """A tensor on disk that is read when, and as far as, it is indexed; safetensors' slices are such."""

    def get_dtype(self) -> str: ...
    def get_shape(self) -> Sequence[int]: ...
    def __getitem__(self, index: Any) -> torch.Tensor: ...


def fingerprint(folder: Path, essentials: Mapping[str, Any]) -> str:
    """`sha256:<hex>` of the safetensors checkpoint in `folder`.

    essentials: what of the configuration decides over the computation; JSON values only.

    Raises:
        ModelError: no safetensors file, or a damaged one.
    """
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in _weight_files(folder)]
            tensors = {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118
            return fingerprint_of(tensors, essentials)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{folder}: the weights cannot be read: {error}") from error


def fingerprint_of(tensors: Mapping[str, StoredTensor], essentials: Mapping[str, Any]) -> str:
    """`sha256:<hex>` of stored tensors, wherever they lie; `fingerprint` is this over a folder."""
    digest = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    for name in sorted(tensors):
        stored = tensors[name]
        digest.update(f"\n{name} {stored.get_dtype()} {list(stored.get_shape())}\n".encode())
        for part in _sample(stored):
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / name for name in names] + sorted(folder.glob(_ADAPTER))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: there is no safetensors file")
    return files


def _sample(stored: StoredTensor) -> Iterator[torch.Tensor]:
    """The parts of a lazily read tensor that take part in the digest."""
    shape = stored.get_shape()
    if not shape:
        yield stored[...]
        return
    row = stored[:1]
    if row.nbytes * shape[0] <= WHOLE_TENSOR_BYTES or shape[0] <= NUM_SAMPLED_ROWS:
        yield stored[:]
        return
    last = shape[0] - 1
    for step in range(NUM_SAMPLED_ROWS):
        position = step * last // (NUM_SAMPLED_ROWS - 1)
        yield stored[position : position + 1]
