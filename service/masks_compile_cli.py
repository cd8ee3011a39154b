"""The command `masks compile`: a checkpoint for one task."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import Json, Model, Revision, settings_of
from service.masks_cli import Where, find_mask, show

if TYPE_CHECKING:
    from lalm.pruned import PrunedSizes


def compile_mask(
    task: Annotated[str, typer.Argument(help="Name of a task that has a mask for the model.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    folder: Where = None,
    model: Model = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint for one task.

    The heads that the task's mask silences are gone from it: it is smaller and faster, gives the same tokens
    and knows no other task. Its folder has the mask file too, so that one option serves it.

    \b
    ahamask masks compile ser --out ser-lalm
    ahamask serve --model ser-lalm
    """
    settings = settings_of(model=model, revision=revision, masks_dir=folder)
    from lalm.families import checkpoint_folder, model_name
    from lalm.head_mask import MaskFile
    from lalm.pruned import compile_task

    path = find_mask(task, settings.masks_dir_for(model_name(settings.model)))
    checkpoint = checkpoint_folder(settings.model, settings.revision)
    sizes = compile_task(checkpoint, MaskFile.load(path), out)
    show({"folder": str(out), **asdict(sizes)} if as_json else _page(out, sizes))


def _page(folder: Path, sizes: PrunedSizes) -> str:
    share = 100 * sizes.weight_bytes_kept / sizes.weight_bytes
    megabytes, kept = sizes.weight_bytes / 1e6, sizes.weight_bytes_kept / 1e6
    lines = [
        str(folder),
        f"  active heads     {sizes.num_active} of {sizes.num_heads}",
        f"  kept heads       {sizes.num_heads_kept}, copies of one another counted once",
        f"  key-value heads  {sizes.num_kv_heads_kept} of {sizes.num_kv_heads}",
        f"  weights          {kept:.1f} of {megabytes:.1f} MB ({share:.0f} %)",
    ]
    return "\n".join(lines)
