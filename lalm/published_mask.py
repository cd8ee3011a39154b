"""Head masks as the authors of AHAMask publish them: PyTorch files of mask logits.

    {"model": {"tensor": float32 [num_layers * (num_heads + 1)]}}

Layer by layer, a logit a head and one for the feed-forward block. The latter is never applied: it is dropped
when a file is read, and kept active when one is written. A head is active where sigmoid(logit) >= 0.5, in
float32. The file says nothing of the model or the task: the caller does.

    to_mask_file, from_mask_file      a published file to one of ours, and back

Source: the published masks of AHAMask (arXiv 2509.01787).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity, new_mask_file
from lalm.task import TaskSpec
from lalm.whole_file import write_whole

SUFFIXES = (".pth", ".pt")
# sigmoid is 0.98 there; mask logits start at it when they are trained
_ACTIVE_LOGIT = 4.0
_LOGITS = "mask_logits"  # under `training`: one string a layer, num_heads + 1 numbers

_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)


def to_mask_file(path: Path, task: TaskSpec, model: ModelIdentity, *, keep_logits: bool = False) -> MaskFile:
    """The published file `path` as a mask file for `task` on `model`.

    keep_logits: keep the logits too, under `training`, so that the same ones can be written again.

    Raises:
        HeadMaskError: as `read_mask_logits`, or no head is active.
    """
    logits = read_mask_logits(path, model.num_layers, model.num_heads)
    training: dict[str, JsonValue] = {
        "imported_from": "/".join(path.resolve().parts[-2:]),
        "imported_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    if keep_logits:
        training[_LOGITS] = [" ".join(str(logit) for logit in layer) for layer in logits]
    return new_mask_file(path, task, model, binarise_published(logits), training)


def from_mask_file(mask_file: MaskFile, path: Path) -> NDArray[np.float32]:
    """Published logits that give the heads of `mask_file`, float32 [num_layers, num_heads + 1].

    The ones it was imported with, if they were kept; else 4 for active heads and feed-forward, -4 for others.

    Raises:
        HeadMaskError: the kept logits are not those of the heads; `path` is for the message.
    """
    head_mask, kept = mask_file.head_mask, mask_file.training.get(_LOGITS)
    if kept is None:
        return logits_for(head_mask)
    try:
        rows = [[float(logit) for logit in str(layer).split()] for layer in cast("list[str]", kept)]
        logits = np.array(rows, dtype=np.float32)
        if logits.ndim == 2 and binarise_published(logits) == head_mask:
            return logits
    except (ValueError, TypeError):
        pass
    raise HeadMaskError(path, f"the numbers under training.{_LOGITS} are not the logits of its heads")


def read_mask_logits(path: Path, num_layers: int, num_heads: int) -> NDArray[np.float32]:
    """The logits of a published file, float32 [num_layers, num_heads + 1]; the last column is feed-forward.

    Only tensors are unpickled: loading runs no code of the file.

    Raises:
        HeadMaskError: not such a file, of another shape, or with logits that are no numbers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise HeadMaskError(path, f"not a PyTorch file of tensors: {_one_line(error)}") from error
    tensor = _tensor(content)
    if tensor is None or not tensor.is_floating_point():
        raise HeadMaskError(path, 'not a published mask: {"model": {"tensor": [floats]}} is expected')
    wanted = num_layers * (num_heads + 1)
    if tensor.numel() != wanted:
        raise HeadMaskError(
            path,
            f"has {tensor.numel()} logits, the model needs {wanted}: "
            f"{num_layers} layers x ({num_heads} heads + 1 feed-forward)",
        )
    logits: NDArray[np.float32] = tensor.detach().float().reshape(num_layers, num_heads + 1).numpy()
    if not np.isfinite(logits).all():
        raise HeadMaskError(path, "has logits that are not finite")
    return logits


def binarise_published(logits: NDArray[np.float32]) -> HeadMask:
    """[num_layers, num_heads + 1] logits as a head mask, the feed-forward column dropped."""
    active = torch.sigmoid(torch.from_numpy(logits[:, :-1].copy())) >= 0.5
    return HeadMask(np.asarray(active.numpy()))


def logits_for(head_mask: HeadMask) -> NDArray[np.float32]:
    """Logits that stand for `head_mask`: 4 for active heads and all feed-forward blocks, else -4."""
    active = np.hstack([head_mask.heads, np.ones((head_mask.num_layers, 1), dtype=np.bool_)])
    return np.where(active, _ACTIVE_LOGIT, -_ACTIVE_LOGIT).astype(np.float32)


def write_mask_logits(path: Path, logits: NDArray[np.float32]) -> None:
    """Write [num_layers, num_heads + 1] logits in the published format, whole or not at all.

    Raises:
        HeadMaskError: the file cannot be written.
    """
    buffer = io.BytesIO()
    tensor = torch.from_numpy(np.array(logits, dtype=np.float32).reshape(-1))
    torch.save({"model": OrderedDict(tensor=tensor)}, buffer)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise HeadMaskError(path, f"cannot be written: {error.strerror}") from error


def _tensor(content: Any) -> torch.Tensor | None:
    model = content.get("model") if isinstance(content, dict) else None
    tensor = model.get("tensor") if isinstance(model, dict) else None
    return tensor if isinstance(tensor, torch.Tensor) else None


def _one_line(error: BaseException) -> str:
    """The first sentence; torch's advice to load without safety is not ours."""
    return (" ".join(str(error).split()) or type(error).__name__).split(". ")[0]
