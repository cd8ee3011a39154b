"""From a folder or a hub id to a loaded model of the right family."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionResolutionError
from safetensors import SafetensorError
from transformers.utils import logging as hf_logging

from lalm import tiny
from lalm.errors import ModelError
from lalm.families.hf_loading import identify_hf, load_hf
from lalm.families.hf_models import MODELS
from lalm.families.model_file import SUFFIXES, ModelFile
from lalm.families.placement import Placement, Quantize
from lalm.families.qwen2_audio import identify_qwen2_audio, load_qwen2_audio
from lalm.families.salmonn import identify_salmonn, load_salmonn
from lalm.family import ModelFamily
from lalm.head_mask import ModelIdentity

Dtype = Literal["float32", "bfloat16", "float16"]

log = logging.getLogger(__name__)

_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_LOADERS: Mapping[str, Callable[[Path, str, Placement], ModelFamily]] = {
    "qwen2_audio": load_qwen2_audio,
    **dict.fromkeys(MODELS, load_hf),
}
# Who it is, without loading a weight. A family that is not here is loaded to be asked.
_IDENTIFIERS: Mapping[str, Callable[[Path, str], ModelIdentity]] = {
    "qwen2_audio": identify_qwen2_audio,
    **dict.fromkeys(MODELS, identify_hf),
}
# The same for families whose parts a model file names.
_FILE_LOADERS: Mapping[str, Callable[[ModelFile, str, Placement], ModelFamily]] = {
    "salmonn": load_salmonn,
}
_FILE_IDENTIFIERS: Mapping[str, Callable[[ModelFile, str], ModelIdentity]] = {"salmonn": identify_salmonn}
# what transformers raises on files that are missing, damaged, or do not fit together
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
_NOT_ON_HUB = (HFValidationError, RevisionResolutionError, httpx.HTTPError, OSError)
_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_family(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    quantize: Quantize | None = None,
    device_map: str | None = None,
    name: str | None = None,
) -> ModelFamily:
    """Load a model, frozen and gated.

    path_or_id: a checkpoint folder, a model file (TOML or JSON), or a hub id such as `Qwen/Qwen2-Audio-7B`.
    revision: branch, tag or commit of a hub id.
    dtype: what to compute in, whatever the checkpoint is stored in.
    quantize: `int8` or `int4` for the decoder's linear layers; the model's identity stays.
    device_map: `auto` to spread the decoder over all GPUs, or a JSON object from modules to devices.
    name: what people call it; the name of the folder, the model file or the hub id if not given.

    Raises:
        ModelError: not found, damaged, of a family that is not supported, or the device is not there.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    found = _find(str(path_or_id), revision, name)
    placement = Placement(_device(device), _DTYPES[dtype], quantize, device_map)
    try:
        with _progress(path_or_id):
            return found.load(placement)
    except _DAMAGED as error:
        raise ModelError(f"{path_or_id}: cannot be loaded: {_one_line(error)}") from error


def identify(
    path_or_id: str | Path, *, revision: str | None = None, name: str | None = None
) -> ModelIdentity:
    """Which model a checkpoint is, as `load_family(…).identity` says, from its configuration and its files.

    Raises:
        ModelError: as `load_family`, but for damage that only shows in loading.
    """
    found = _find(str(path_or_id), revision, name)
    if found.identify is None:
        return load_family(path_or_id, revision=revision, name=name).identity
    try:
        return found.identify()
    except _DAMAGED as error:
        raise ModelError(f"{path_or_id}: cannot be identified: {_one_line(error)}") from error


@dataclass(frozen=True)
class _Found:
    """A model of a known family that is not loaded yet."""

    load: Callable[[Placement], ModelFamily]
    identify: Callable[[], ModelIdentity] | None


def _find(path_or_id: str, revision: str | None, name: str | None) -> _Found:
    path = Path(path_or_id).expanduser()
    if path.is_file() or path.suffix in SUFFIXES:
        if revision is not None:
            raise ModelError(f"{path_or_id}: a model file has no revision {revision!r}")
        file = ModelFile.load(path)
        if file.family not in _FILE_LOADERS:
            known = ", ".join(_FILE_LOADERS)
            raise ModelError(f"{path}: family {file.family!r} is not supported; supported: {known}")
        name = name or file.name
        return _Found(
            partial(_FILE_LOADERS[file.family], file, name),
            partial(_FILE_IDENTIFIERS[file.family], file, name),
        )
    folder = checkpoint_folder(path_or_id, revision)
    name = name or model_name(path_or_id)
    model_type = _model_type(folder)
    if model_type not in _LOADERS:
        known = ", ".join(_LOADERS)
        raise ModelError(f"{path_or_id}: model type {model_type!r} is not supported; supported: {known}")
    identify_family = _IDENTIFIERS.get(model_type)
    return _Found(
        partial(_LOADERS[model_type], folder, name),
        None if identify_family is None else partial(identify_family, folder, name),
    )


def checkpoint_folder(path_or_id: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; one on the hub is downloaded.

    Raises:
        ModelError: not found.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{path_or_id}: a local folder has no revision {revision!r}")
        return folder
    if folder.is_file() or not _HUB_ID.fullmatch(path_or_id):
        raise ModelError(f"{path_or_id}: neither a folder nor a hub id of the form owner/name")
    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=_FILES))
    except _NOT_ON_HUB as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"{path_or_id}: no such folder, and no such model{at} on the hub: {_one_line(error)}"
        ) from error


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the configuration of a model: {_one_line(error)}") from error


def model_name(path_or_id: str) -> str:
    """What a model is called if nobody names it: the last part of its folder or hub id."""
    path = Path(path_or_id).expanduser().resolve()
    return tiny.NAME if path == tiny.CHECKPOINT.resolve() else path.name


def _device(device: str) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise ModelError(f"device {device!r} is not available: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _progress(path_or_id: str | Path) -> Iterator[None]:
    """A bar of the tensors that are read, for people at a terminal; else a line before and behind."""
    log.info("loading %s", path_or_id)
    start_s = time.perf_counter()
    enabled = hf_logging.is_progress_bar_enabled()
    set_bar = hf_logging.enable_progress_bar if sys.stderr.isatty() else hf_logging.disable_progress_bar
    set_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        set_back = hf_logging.enable_progress_bar if enabled else hf_logging.disable_progress_bar
        set_back()  # type: ignore[no-untyped-call]
    log.info("loaded %s in %.1f s", path_or_id, time.perf_counter() - start_s)
