"""What training and evaluation refuse.

TrainingError
├ ConfigError        a recipe file: unreadable, an unknown key, a value that is not allowed
├ ManifestError      a data manifest, with file and line
├ CheckpointError    a checkpoint that cannot be resumed
└ CorpusError        a public corpus: a file or folder that its layout has is missing, or cannot be read
"""

from __future__ import annotations

from pathlib import Path


class TrainingError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(TrainingError):
    """A recipe file is wrong; the message names the file and the key."""


class ManifestError(TrainingError):
    """A data manifest is wrong; `line` counts from 1."""

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        where = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason

    def __reduce__(self) -> tuple[type[ManifestError], tuple[Path, int | None, str]]:
        return type(self), (self.path, self.line, self.reason)  # so that it can come from another process


class CheckpointError(TrainingError):
    """A training checkpoint is missing, or belongs to another recipe."""


class CorpusError(TrainingError):
    """A public corpus is not laid out as expected; the message names the file or folder."""
