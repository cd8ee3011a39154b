"""A folder of head mask files becomes the tasks of the service: adding a file adds an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import TaskSpec
from service.errors import UnknownTaskError


@dataclass(frozen=True)
class CatalogueEntry:
    """One task that the service answers, with the head mask that triggers it."""

    task: TaskSpec
    head_mask: HeadMask
    path: Path
    evaluation: dict[str, Any]


class Catalogue:
    """The tasks of one model by name, in alphabetical order; never empty and never changed."""

    def __init__(self, entries: Mapping[str, CatalogueEntry]) -> None:
        self._entries = dict(sorted(entries.items()))

    @classmethod
    def load(cls, folder: Path, identity: ModelIdentity) -> Catalogue:
        """Read and check every `*.json` of `folder` for the model `identity`.

        Raises:
            HeadMaskError: the folder is missing or without mask files, or a file is wrong or made for another
                model; it names the file and the reason.
        """
        if not folder.is_dir():
            raise HeadMaskError(folder, f"no such folder of masks for {identity.name}; set AHAMASK_MASKS_DIR")
        paths = sorted(folder.glob("*.json"))
        if not paths:
            raise HeadMaskError(folder, "no mask file (*.json) in this folder, so there is no task to serve")
        return cls({entry.task.name: entry for entry in (_read(path, identity) for path in paths)})

    def __getitem__(self, name: str) -> CatalogueEntry:
        """The entry of task `name`.

        Raises:
            UnknownTaskError: there is none; it names the tasks that exist.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownTaskError(name, known=list(self._entries)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[CatalogueEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


def _read(path: Path, identity: ModelIdentity) -> CatalogueEntry:
    mask_file = MaskFile.load(path)
    mask_file.check_model(identity, path)
    return CatalogueEntry(
        task=mask_file.task, head_mask=mask_file.head_mask, path=path, evaluation=dict(mask_file.evaluation)
    )
