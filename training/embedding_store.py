"""Audio embeddings on disk, for the later epochs of a training and for other trainings of the same model.

    <folder>/<first two digits>/<sha256 of the recordings and the model>.safetensors

An entry is found by content: the bytes of its recordings, the model's fingerprint and what it computes in.
A recording that changed is another entry; tasks on the same recordings share theirs. Entries are written
whole or not at all, so processes and trainings may use one folder at a time. The folder is bounded: what was
not used for longest gives way to what a training needs, never what it uses itself; the rest is computed anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lalm.family import ModelFamily
from training.config import DataConfig
from training.manifest import Example
from training.processes import ALONE, Processes

FORMAT = "1"  # another one where embeddings of the same model are computed otherwise
MIB = 2**20


class EmbeddingStore:
    """The entries of one model in a folder of at most `max_bytes`."""

    def __init__(
        self, folder: Path, family: ModelFamily, max_bytes: int, processes: Processes = ALONE
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._processes = processes
        taken = f"{family.audio_input} {family.max_audio_s}"
        self._model = f"{FORMAT} {family.identity.fingerprint} {family.dtype} {taken}"
        self._used: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        if processes.is_main:
            _shrink(_by_age(folder), max_bytes)
        processes.wait()
        # Processes share the room and what may be removed, so that together they keep the bound.
        total = sum(size for _, size in _by_age(folder))
        self._room = (max_bytes - total) // processes.count
        self._removable: list[tuple[Path, int]] | None = None

    def keys(self, examples: Sequence[Example]) -> list[str]:
        """The keys of `examples`, which from now on give way to nothing; reads every recording once.

        Raises:
            OSError: a recording cannot be read.
        """
        numbers = self._processes.share(range(len(examples)))
        mine = [(number, self._key(examples[number])) for number in numbers]
        keys = [key for _, key in sorted(self._processes.gathered(mine))]
        for path in map(self._path, keys):
            self._used.add(path)
            if path.is_file():
                os.utime(path)
        return keys

    def has(self, key: str) -> bool:
        """Whether there is an entry."""
        return self._path(key).is_file()

    def load(self, key: str, device: torch.device) -> tuple[Tensor, ...] | None:
        """One tensor a recording, [num_audio_tokens, hidden]; None if there is no entry or it is damaged."""
        try:
            tensors = load(self._path(key).read_bytes())
        except (OSError, SafetensorError):
            return None
        return tuple(tensors[str(number)].to(device) for number in range(len(tensors)))

    def save(self, key: str, embeds: Sequence[Tensor]) -> None:
        """Keep an entry, if there is room."""
        path = self._path(key)
        if path.is_file():
            return
        content = save({str(number): tensor.contiguous().cpu() for number, tensor in enumerate(embeds)})
        if not self._make_room(len(content)):
            return
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
        self._room -= len(content)

    def describe(self) -> str:
        """How much there is, for people."""
        sizes = [size for _, size in _by_age(self._folder)]
        used = sum(path.is_file() for path in self._used)
        return (
            f"audio embeddings in {self._folder}: {sum(sizes) / MIB:.1f} MiB of at most "
            f"{self._max_bytes / MIB:.0f} MiB; {used} of {len(self._used)} that this training uses"
        )

    def _key(self, example: Example) -> str:
        digest = hashlib.sha256(self._model.encode())
        for files in example.recordings:
            digest.update(b"\nrecording")
            for file in files:
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit, now that the oldest entries that this training does not use are gone."""
        if self._room < size and self._removable is None:
            others = [entry for entry in _by_age(self._folder) if entry[0] not in self._used]
            self._removable = list(self._processes.share(others))
        while self._room < size and self._removable:
            path, freed = self._removable.pop(0)
            path.unlink(missing_ok=True)
            self._room += freed
        return self._room >= size


def open_store(data: DataConfig, family: ModelFamily, processes: Processes) -> EmbeddingStore | None:
    """The store of a recipe, if it has one."""
    if data.cache_folder is None:
        return None
    return EmbeddingStore(data.cache_folder, family, round(data.cache_max_gib * 2**30), processes)


def _by_age(folder: Path) -> list[tuple[Path, int]]:
    """Every file under `folder` with its size in bytes, that of the oldest use first."""
    found = []
    for path in folder.glob("??/*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another training removed it
            continue
        found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]


def _shrink(entries: Iterable[tuple[Path, int]], max_bytes: int) -> None:
    """Remove the oldest of `entries` until the others fit."""
    entries = list(entries)
    excess = sum(size for _, size in entries) - max_bytes
    for path, size in entries:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
