"""Published weight files, read tensor by tensor: nothing is in memory before its turn, nothing twice.

Pickles are read with `weights_only=True`, which runs no code of theirs, and mapped into memory; safetensors
are read lazily. `fill` puts tensors into a module and accounts for every key.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lalm.errors import ModelError
from lalm.fingerprint import StoredTensor

Tensors = dict[str, StoredTensor]

_MAX_NAMED = 5  # keys that an error names
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


class _Readable:
    """A tensor in memory, or mapped into it, as safetensors would show one on disk."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def get_dtype(self) -> str:
        return _NAMES.get(self._tensor.dtype, str(self._tensor.dtype))

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensor[index]


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, its tensors mapped into memory where the format allows it.

    Raises:
        ModelError: unreadable, damaged, or with anything but tensors and plain values in it.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not a zip file
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"{path}: cannot be read as weights: {first}") from error


def stored_tensors(path: Path, content: object) -> Tensors:
    """The tensors of a state dict in a pickle.

    Raises:
        ModelError: `content` is no state dict.
    """
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path}: not a mapping from names to tensors")
    return {str(name): _Readable(tensor) for name, tensor in content.items()}


def in_memory(tensor: Tensor) -> StoredTensor:
    """A tensor that was computed, where stored ones are asked for."""
    return _Readable(tensor)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a transformers checkpoint: safetensors if there are any, else pickles.

    Raises:
        ModelError: there are none, or one that the index names is missing.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index}: not an index of weight files: {error}") from error
            files = [folder / name for name in sorted(names)]
            if missing := [file.name for file in files if not file.is_file()]:
                raise ModelError(f"{folder}: weight files are missing: {', '.join(missing)}")
            return files
        if single.is_file():
            return [single]
    raise ModelError(
        f"{folder}: there is neither model.safetensors nor pytorch_model.bin, nor an index of them"
    )


def folder_tensors(folder: Path) -> Tensors:
    """All tensors of a transformers checkpoint, by name, none of them read yet.

    Raises:
        ModelError: as `weight_files`, or a file that cannot be read.
    """
    tensors: Tensors = {}
    for path in weight_files(folder):
        if path.suffix == ".bin":
            tensors |= stored_tensors(path, read_pickle(path))
            continue
        try:
            file: Any = safe_open(path, framework="pt")
            tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot be read as weights: {error}") from error
    return tensors


def fill(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    dtype_of: Callable[[nn.Module], torch.dtype],
    device: torch.device,
    source: Path,
) -> None:
    """Put every tensor of the same name into `module`, made on the meta device; one at a time.

    dtype_of: what the parameters of a (sub)module are kept in.

    Raises:
        ModelError: a tensor is missing, is left over, or has another shape.
    """
    slots = dict(_slots(module))
    check_keys(source, slots, tensors)
    for name, (holder, attribute, parameter) in slots.items():
        stored = tensors[name]
        check_shape(source, name, stored, parameter)
        # a copy, also where device and dtype are those of the file: what is mapped must not stay mapped
        value = stored[...].to(device=device, dtype=dtype_of(holder), copy=True)
        setattr(holder, attribute, nn.Parameter(value, requires_grad=False))


def check_keys(source: Path, wanted: Iterable[str], found: Iterable[str]) -> None:
    """Every wanted key is there, and no other.

    Raises:
        ModelError: naming what is missing and what is left over.
    """
    wanted, found = set(wanted), set(found)
    complaints = []
    if missing := sorted(wanted - found):
        complaints.append(f"{len(missing)} tensors are missing: {_some(missing)}")
    if unknown := sorted(found - wanted):
        complaints.append(f"{len(unknown)} tensors are unknown: {_some(unknown)}")
    if complaints:
        raise ModelError(f"{source}: {'; '.join(complaints)}")


def check_shape(source: Path, name: str, stored: StoredTensor, parameter: Tensor) -> None:
    """What is stored fits where it goes.

    Raises:
        ModelError: it does not.
    """
    found, needed = list(stored.get_shape()), list(parameter.shape)
    if found != needed:
        raise ModelError(f"{source}: {name} has shape {found}, needed is {needed}")


def _slots(module: nn.Module) -> Iterable[tuple[str, tuple[nn.Module, str, Tensor]]]:
    for prefix, holder in module.named_modules():
        for attribute, parameter in holder.named_parameters(recurse=False):
            yield f"{prefix}.{attribute}" if prefix else attribute, (holder, attribute, parameter)


def _some(keys: list[str]) -> str:
    more = len(keys) - _MAX_NAMED
    return ", ".join(keys[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
