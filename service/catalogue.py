"""A folder of head mask files becomes the tasks of the service: adding a file adds an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import TaskSpec
from service.errors import LastTaskError, UnknownTaskError


@dataclass(frozen=True)
class CatalogueEntry:
    """One task that the service answers, with the head mask that triggers it."""

    task: TaskSpec
    head_mask: HeadMask
    path: Path
    evaluation: dict[str, Any]
    mask_file: MaskFile

    @classmethod
    def of(cls, mask_file: MaskFile, path: Path, identity: ModelIdentity) -> Self:
        """The entry of a mask file that lies, or will lie, at `path`.

        Raises:
            HeadMaskError: it is made for another model than `identity`.
        """
        mask_file.check_model(identity, path)
        return cls(
            task=mask_file.task,
            head_mask=mask_file.head_mask,
            path=path,
            evaluation=dict(mask_file.evaluation),
            mask_file=mask_file,
        )


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
        entries = (_read(path, identity) for path in _paths(folder, identity))
        return cls({entry.task.name: entry for entry in entries})

    def reload(self, folder: Path, identity: ModelIdentity) -> tuple[Catalogue, list[HeadMaskError]]:
        """The catalogue of `folder` as it is now, and what was wrong with its files.

        A file that is wrong keeps the entry that it had here, if any; one that is gone takes its task along.

        Raises:
            HeadMaskError: the folder is missing or without mask files, or none of them is good.
        """
        entries: dict[str, CatalogueEntry] = {}
        errors = []
        old = {entry.path: entry for entry in self}
        for path in _paths(folder, identity):
            try:
                entry = _read(path, identity)
            except HeadMaskError as error:
                errors.append(error)
                if path not in old:
                    continue
                entry = old[path]
            entries[entry.task.name] = entry
        if not entries:
            raise errors[0]
        return Catalogue(entries), errors

    def with_entry(self, entry: CatalogueEntry) -> Catalogue:
        """This catalogue and `entry`, in the place of that of the same name if there is one."""
        return Catalogue({**self._entries, entry.task.name: entry})

    def without(self, name: str) -> Catalogue:
        """This catalogue but for the entry `name`.

        Raises:
            UnknownTaskError: there is none.
            LastTaskError: there would be none left.
        """
        entry = self[name]
        if len(self) == 1:
            raise LastTaskError(name)
        return Catalogue({other.task.name: other for other in self if other is not entry})

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


def _paths(folder: Path, identity: ModelIdentity) -> list[Path]:
    if not folder.is_dir():
        raise HeadMaskError(folder, f"no such folder of masks for {identity.name}; set AHAMASK_MASKS_DIR")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise HeadMaskError(folder, "no mask file (*.json) in this folder, so there is no task to serve")
    return paths


def _read(path: Path, identity: ModelIdentity) -> CatalogueEntry:
    return CatalogueEntry.of(MaskFile.load(path), path, identity)
