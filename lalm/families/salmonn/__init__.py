"""SALMONN (arXiv 2310.13289), from its published files: Vicuna, Whisper, BEATs and what ties them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch

from lalm.errors import ModelError
from lalm.families.model_file import ModelFile
from lalm.family import ModelFamily
from lalm.head_mask import ModelIdentity


def load_salmonn(
    file: ModelFile,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    decoder_options: Mapping[str, Any] = MappingProxyType({}),
) -> ModelFamily:
    """Load the SALMONN that a model file names; `docs/salmonn.md` is the page of these files.

    decoder_options: further arguments of transformers' `from_pretrained` for Vicuna, such as
        `quantization_config`.

    Raises:
        ModelError: it cannot be loaded, or the extra `salmonn` is not installed.
    """
    with _extra():
        from lalm.families.salmonn.load import load
    return load(file, name, device, dtype, decoder_options)


def identify_salmonn(file: ModelFile, name: str) -> ModelIdentity:
    """Which SALMONN a model file names; loads no weights.

    Raises:
        ModelError: a part is not there or cannot be read, or the extra `salmonn` is not installed.
    """
    with _extra():
        from lalm.families.salmonn.load import identify
    return identify(file, name)


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("peft", "sentencepiece"):
            raise
        raise ModelError(f"SALMONN needs {error.name}: pip install 'ahamask[salmonn]'") from error
