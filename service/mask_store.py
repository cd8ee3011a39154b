"""Changes to the head masks of a running service: files and catalogue, together or not at all.

A request takes its entries from the catalogue once, so that a change reaches the requests after it, and those
that have begun end under the head mask they began with.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from lalm.errors import HeadMaskError
from lalm.head_mask import MaskFile, ModelIdentity
from service.catalogue import CatalogueEntry
from service.errors import HeadMasksReadOnlyError, InvalidHeadMaskError
from service.runtime import Runtime

log = structlog.get_logger(__name__)


class MaskStore:
    """The folder of mask files of one service. One change at a time; for the event loop's thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._changing = asyncio.Lock()

    async def put(self, name: str, encoded: bytes) -> tuple[CatalogueEntry, bool]:
        """Serve the task `name` under the mask file `encoded`; returns its entry and whether the task is new.

        The file is written first: what is answered here is there after a restart, too.

        Raises:
            InvalidHeadMaskError: not a mask file, not of this task, or made for another model.
            HeadMasksReadOnlyError: the folder cannot be written.
            NotReadyError: loading, draining or failed.
        """
        async with self._changing:
            loaded = self._runtime.serving()
            identity, catalogue = loaded.engine.family.identity, loaded.catalogue
            mask_file, entry = _check(name, encoded, self._folder(identity), identity)
            try:
                await asyncio.to_thread(mask_file.save, entry.path)
            except HeadMaskError as error:
                raise _read_only(error.reason) from error
            self._runtime.replace_catalogue(catalogue.with_entry(entry))
        is_new = name not in catalogue
        log.info("head mask changed", task=name, sha256=entry.head_mask.sha256, is_new=is_new)
        return entry, is_new

    async def delete(self, name: str) -> None:
        """Serve the task `name` no more, and remove its file.

        Raises:
            UnknownTaskError: there is none.
            LastTaskError: it is the only one.
            HeadMasksReadOnlyError: the folder cannot be written.
            NotReadyError: loading, draining or failed.
        """
        async with self._changing:
            catalogue = self._runtime.serving().catalogue
            rest = catalogue.without(name)
            try:
                await asyncio.to_thread(catalogue[name].path.unlink, missing_ok=True)
            except OSError as error:
                raise _read_only(str(error.strerror)) from error
            self._runtime.replace_catalogue(rest)
        log.info("head mask removed", task=name)

    async def reload(self) -> None:
        """Serve what the folder holds now; a file that is wrong keeps the head mask it had."""
        async with self._changing:
            loaded = self._runtime.loaded
            if loaded is None:
                return
            identity = loaded.engine.family.identity
            try:
                catalogue, errors = await asyncio.to_thread(
                    loaded.catalogue.reload, self._folder(identity), identity
                )
            except HeadMaskError as error:
                catalogue, errors = loaded.catalogue, [error]
            self._runtime.replace_catalogue(catalogue)
        for bad in errors:
            log.error("head mask not reloaded; the old one stays", path=str(bad.path), reason=bad.reason)
        log.info("head masks reloaded", tasks=[entry.task.name for entry in catalogue], num_bad=len(errors))
        self._runtime.metrics.count_reload("head_masks", ok=not errors)

    def _folder(self, identity: ModelIdentity) -> Path:
        return self._runtime.settings.masks_dir_for(identity.name)


def _check(
    name: str, encoded: bytes, folder: Path, identity: ModelIdentity
) -> tuple[MaskFile, CatalogueEntry]:
    """The mask file `encoded`, and its entry; the name of its file is made of its task's checked name."""
    try:
        mask_file = MaskFile.parse(encoded, folder / f"{name}.json")
        entry = CatalogueEntry.of(mask_file, folder / f"{mask_file.task.name}.json", identity)
        mask_file.encode()
    except HeadMaskError as error:
        raise InvalidHeadMaskError(f"not a head mask for this service: {error.reason}") from error
    except ValueError as error:
        raise InvalidHeadMaskError(f"not a head mask for this service: {error}") from error
    return mask_file, entry


def _read_only(reason: str) -> HeadMasksReadOnlyError:
    return HeadMasksReadOnlyError(
        f"the head mask {reason}: the folder must be writable to change it here; set AHAMASK_MASKS_DIR"
    )
