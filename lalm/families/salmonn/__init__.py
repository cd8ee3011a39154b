"""SALMONN (arXiv 2310.13289), from its published files: Vicuna, Whisper, BEATs and what ties them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lalm.errors import ModelError
from lalm.families.model_file import ModelFile
from lalm.families.placement import Placement
from lalm.family import ModelFamily
from lalm.head_mask import ModelIdentity


def load_salmonn(file: ModelFile, name: str, placement: Placement) -> ModelFamily:
    """Load the SALMONN that a model file names; `docs/salmonn.md` is the page of these files.

    Raises:
        ModelError: it cannot be loaded, or the extra `salmonn` is not installed.
    """
    with _extra():
        from lalm.families.salmonn.load import load
    return load(file, name, placement)


def identify_salmonn(file: ModelFile, name: str) -> ModelIdentity:
    """Which SALMONN a model file names; loads no weights, and needs no extra.

    Raises:
        ModelError: a key of the file is wrong, or a part is not there or cannot be read.
    """
    from lalm.families.salmonn.parts import open_parts

    return open_parts(file).identity(name)


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("peft", "sentencepiece"):
            raise
        raise ModelError(f"SALMONN needs {error.name}: pip install 'ahamask[salmonn]'") from error
