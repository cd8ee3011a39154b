"""Which files make up a SALMONN: the model file (TOML or JSON), and where what it names lies.

    vicuna = "lmsys/vicuna-13b-v1.1"                   a folder, or a hub id
    whisper = "openai/whisper-large-v2"                a folder, or a hub id
    beats = "BEATs_iter3_plus_AS2M_….pt"               a file, or a hub id with a path: owner/name/file
    salmonn = "tsinghua-ee/SALMONN/salmonn_v1.pth"     likewise

`docs/salmonn.md` is its page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import httpx
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionResolutionError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lalm.errors import ModelError
from lalm.families.model_file import ModelFile
from lalm.validation import reason_of

FAMILY: Literal["salmonn"] = "salmonn"

_Where = Annotated[str, StringConstraints(min_length=1)]
_HUB_FOLDER = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+)")
_NOT_ON_HUB = (HFValidationError, RevisionResolutionError, httpx.HTTPError, OSError)
_TEXTS = ["*.json", "*.model"]


class SalmonnFile(BaseModel):
    """The keys of a model file of this family; paths are relative to the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["salmonn"]
    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")] | None = None
    vicuna: _Where
    whisper: _Where
    beats: _Where
    salmonn: _Where
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    qformer_heads: Annotated[int, Field(ge=1)] = 12

    @classmethod
    def parse(cls, file: ModelFile) -> SalmonnFile:
        """Check the keys of a model file.

        Raises:
            ModelError: a key is missing, unknown, or has a value that is not allowed.
        """
        try:
            return cls.model_validate(file.content)
        except ValidationError as error:
            raise ModelError(f"{file.path}: {reason_of(error)}") from error


def find_folder(where: str, base: Path) -> Path:
    """A folder of a transformers checkpoint, fetched from the hub if `where` is a hub id.

    base: what a relative path is relative to.

    Raises:
        ModelError: neither a folder nor on the hub.
    """
    folder = base / Path(where).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_FOLDER.fullmatch(where):
        raise ModelError(f"{where}: neither a folder (looked in {base}) nor a hub id of the form owner/name")
    try:
        fetched = Path(snapshot_download(where, allow_patterns=[*_TEXTS, "*.safetensors"]))
        if not any(fetched.glob("*.safetensors")):  # older releases have pickles only
            fetched = Path(snapshot_download(where, allow_patterns=[*_TEXTS, "*.bin"]))
    except _NOT_ON_HUB as error:
        raise ModelError(f"{where}: no such folder in {base}, nor on the hub: {_one_line(error)}") from error
    return fetched


def find_file(where: str, base: Path) -> Path:
    """One file, fetched from the hub if `where` is `owner/name/path/of/file`.

    Raises:
        ModelError: neither a file nor on the hub.
    """
    file = base / Path(where).expanduser()
    if file.is_file():
        return file
    parts = _HUB_FILE.fullmatch(where)
    if parts is None:
        raise ModelError(f"{where}: neither a file (looked in {base}) nor of the form owner/name/file")
    try:
        return Path(hf_hub_download(parts[1], parts[2]))
    except _NOT_ON_HUB as error:
        raise ModelError(f"{where}: no such file in {base}, nor on the hub: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
