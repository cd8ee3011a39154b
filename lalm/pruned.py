"""A checkpoint for one task, in which the heads that its head mask silences are physically gone.

    masked model: every head computed, silenced ones multiplied by zero; serves any task
    pruned model: projections and key-value cache hold the kept heads only; serves this task, same tokens

Of each decoder layer the rows of silenced heads leave q_proj and the columns leave o_proj; a key-value head
leaves k_proj and v_proj (and the cache) once no query head of its group is left. A layer without heads keeps
no attention at all. Query heads that are copies of one another (`lalm.copied_heads`) become one head, whose
columns of o_proj are the sum of those of the active ones. Tensors are cut file by file in the precision they
are stored in, so that a model of any size needs no more memory than its largest file.

Source: AHAMask (arXiv 2509.01787): m_ij = 0 removes Y_ij W_O_ij, so that its weights are never used.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lalm.copied_heads import queries_are_copies
from lalm.errors import ModelError
from lalm.families import identify
from lalm.families.pruned_qwen2 import MODEL_TYPE
from lalm.head_mask import HeadMask, MaskFile
from lalm.json_file import read_object, write_object
from lalm.pruned_attention import HeadLayout

# model type of the checkpoint -> where its decoder's attention is, and which decoder can be pruned to what
_ATTENTION = {
    "qwen2_audio": re.compile(
        r"language_model\.(?:model\.)?layers\.(\d+)\.self_attn\.([qkvo])_proj\.(weight|bias)$"
    )
}
_DECODERS = {"qwen2": MODEL_TYPE}
_INDEX = "model.safetensors.index.json"
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class PrunedSizes:
    """What an export changed. Bytes are those of all safetensors files; heads are summed over layers.

    num_heads_kept: query heads of the new checkpoint: the active ones, copies counted once.
    """

    num_heads: int
    num_active: int
    num_heads_kept: int
    num_kv_heads: int
    num_kv_heads_kept: int
    weight_bytes: int
    weight_bytes_kept: int


def compile_task(folder: Path, mask_file: MaskFile, out: Path) -> PrunedSizes:
    """`prune_checkpoint` for the task of a mask file, and in `out`/masks a mask file for the new weights.

    Raises:
        ModelError, OSError: as `prune_checkpoint`.
        HeadMaskError: the mask file was made for another model, or the new one cannot be written.
    """
    path = Path(f"{mask_file.task.name}.json")
    mask_file.check_model(identify(folder), path)
    sizes = prune_checkpoint(folder, mask_file.head_mask, out)
    new = {
        "model": identify(out),
        "heads": tuple(read_object(out / "config.json")["text_config"]["kept_heads"]),
        "training": {**mask_file.training, "pruned_from": mask_file.model.model_dump(mode="json")},
    }
    mask_file.model_copy(update=new).save(out / "masks" / path)
    return sizes


def prune_checkpoint(folder: Path, head_mask: HeadMask, out: Path) -> PrunedSizes:
    """Write the checkpoint in `folder` without the heads that `head_mask` silences into `out`.

    out: a folder that does not exist yet, or is empty; it appears whole or not at all.

    Raises:
        ModelError: no checkpoint that can be pruned, one of another shape, or `out` is taken.
        OSError: reading or writing failed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: there is something already; nothing is overwritten")
    config = _config(folder)
    cuts = _cuts(folder, config, head_mask)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(folder, config, cuts, partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return PrunedSizes(
        num_heads=head_mask.total,
        num_active=head_mask.num_active,
        num_heads_kept=sum(len(cut.layout.heads) for cut in cuts),
        num_kv_heads=sum(cut.layout.num_kv_heads for cut in cuts),
        num_kv_heads_kept=sum(len(cut.layout.kv_heads) for cut in cuts),
        weight_bytes=weight_bytes(folder),
        weight_bytes_kept=weight_bytes(out),
    )


def weight_bytes(folder: Path) -> int:
    """Bytes of all safetensors files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _config(folder: Path) -> dict[str, Any]:
    """The checkpoint's configuration with the sizes of its decoder filled in.

    Raises:
        ModelError: not readable, or of a model that cannot be pruned.
    """
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: config.json cannot be read: {error}") from error
    model_type, text = config.get("model_type"), config.get("text_config") or {}
    decoder = text.get("model_type", "qwen2")
    if model_type not in _ATTENTION or decoder not in _DECODERS:
        raise ModelError(
            f"{folder}: a model of type {model_type!r} with decoder {decoder!r} cannot be pruned; "
            f"those that can: {', '.join(_ATTENTION)} with {', '.join(_DECODERS)}"
        )
    return config


class _Cut:
    """What goes of one layer.

    heads: bool [num_heads], the active ones. num_copies: neighbours that are one head from now on.
    """

    def __init__(self, heads: NDArray[np.bool_], num_copies: int, num_kv_heads: int) -> None:
        self._active = torch.tensor(heads.reshape(-1, num_copies))
        self.kept_heads = "".join("1" if kept else "0" for kept in self._active.any(1).tolist())
        self.layout = HeadLayout(self.kept_heads, num_kv_heads)

    def query(self, tensor: Tensor) -> Tensor:
        """q_proj [num_heads * head_dim, ...], the rows of kept heads."""
        heads = tensor.reshape(*self._active.shape, -1, *tensor.shape[1:])
        return heads[self.layout.heads, 0].flatten(0, 1)

    def key_value(self, tensor: Tensor) -> Tensor:
        """k_proj or v_proj [num_kv_heads * head_dim, ...], the rows of kept key-value heads."""
        heads = tensor.reshape(self.layout.num_kv_heads, -1, *tensor.shape[1:])
        return heads[self.layout.kv_heads].flatten(0, 1)

    def output(self, weight: Tensor) -> Tensor:
        """o_proj [hidden, num_heads * head_dim], the columns of kept heads, added up over active copies."""
        columns = weight.reshape(len(weight), *self._active.shape, -1)
        active = self._active[:, :, None].to(torch.float32)
        summed = (columns.float() * active).sum(2).to(weight.dtype)
        return summed[:, self.layout.heads].flatten(1)


def _cuts(folder: Path, config: dict[str, Any], head_mask: HeadMask) -> list[_Cut]:
    """One a layer; `config` gets the sizes of the new decoder."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(folder, local_files_only=True).text_config
    num_layers, num_heads = text.num_hidden_layers, text.num_attention_heads
    if head_mask.heads.shape != (num_layers, num_heads):
        raise ModelError(
            f"{folder}: has {num_layers} x {num_heads} heads, the head mask is for another model"
        )
    pattern, num_kv_heads = _ATTENTION[config["model_type"]], text.num_key_value_heads
    group_size = num_heads // num_kv_heads
    copied = queries_are_copies(_queries(folder, pattern), torch.arange(num_heads) // group_size)
    num_copies = group_size if copied else 1
    cuts = [_Cut(row, num_copies, num_kv_heads) for row in head_mask.heads]
    config["text_config"] |= {
        "model_type": _DECODERS[text.model_type],
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads // num_copies,
        "num_key_value_heads": num_kv_heads,
        "hidden_size": text.hidden_size,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        "kept_heads": [cut.kept_heads for cut in cuts],
    }
    return cuts


def _queries(folder: Path, pattern: re.Pattern[str]) -> Iterator[Tensor]:
    """Weight and bias of q_proj of every layer."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                found = pattern.search(name)
                if found is not None and found[2] == "q":
                    yield file.get_tensor(name)


def _write(folder: Path, config: dict[str, Any], cuts: list[_Cut], out: Path) -> None:
    for path in {path for pattern in _COPIED for path in folder.glob(pattern)}:
        if path.name not in ("config.json", _INDEX):
            shutil.copyfile(path, out / path.name)
    pattern, num_bytes = _ATTENTION[config["model_type"]], 0
    weight_map: dict[str, str] = {}
    write_object(out / "config.json", config)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = dict(_pruned_tensors(path, pattern, cuts))
        save_file(tensors, out / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if not weight_map:
        raise ModelError(f"{folder}: there is no safetensors file")
    if (folder / _INDEX).is_file():
        index = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _pruned_tensors(path: Path, pattern: re.Pattern[str], cuts: list[_Cut]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            found = pattern.search(name)
            if found is None:
                yield name, tensor
            elif (cut := cuts[int(found[1])]).layout.heads:
                yield name, _kept(tensor, found[2], found[3], cut)


def _kept(tensor: Tensor, projection: str, kind: str, cut: _Cut) -> Tensor:
    """What stays of a weight or bias of a projection."""
    if projection == "q":
        return cut.query(tensor)
    if projection == "o":
        return tensor if kind == "bias" else cut.output(tensor)
    return cut.key_value(tensor)
