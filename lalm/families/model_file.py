"""Models that are no single checkpoint folder: a small file, TOML or JSON, names the family and the parts."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lalm.errors import ModelError

SUFFIXES = (".toml", ".json")


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file; `family` and `name` are keys of every family, the others are its own."""

    path: Path
    family: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """What people call the model: the key `name`, or the file's own without its suffix."""
        return str(self.content.get("name") or self.path.stem)

    @classmethod
    def load(cls, path: Path) -> ModelFile:
        """Read a `.toml` or `.json` file.

        Raises:
            ModelError: unreadable, neither TOML nor JSON, or without a family.
        """
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:  # of JSON, TOML and UTF-8 alike
            raise ModelError(f"{path}: not a model file: {error}") from error
        family = content.get("family") if isinstance(content, dict) else None
        if not isinstance(family, str):
            raise ModelError(f'{path}: not a model file: there is no key family, such as family = "salmonn"')
        return cls(path, family, content)
