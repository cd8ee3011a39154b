"""The published files of a SALMONN, opened: configurations, and every tensor by name, none of them read yet.

From them alone comes the fingerprint, so that a model can be told without loading it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, WhisperConfig

from lalm.errors import ModelError
from lalm.families.model_file import ModelFile
from lalm.families.salmonn.beats import BeatsConfig
from lalm.families.salmonn.checkpoint import (
    Tensors,
    folder_tensors,
    read_pickle,
    stored_tensors,
    weight_files,
)
from lalm.families.salmonn.sources import FAMILY, SalmonnFile, find_file, find_folder
from lalm.fingerprint import fingerprint_of
from lalm.head_mask import ModelIdentity

# what older releases of transformers saved with a model, and newer ones compute
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|embeddings\.position_ids)$")
# all layers of BEATs share the first one's table; saved again in the others, it is superfluous
_COPIED = re.compile(r"encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight$")
_LLAMA = "llama_model."  # how the names of the decoder's tensors begin in a SALMONN checkpoint


@dataclass(frozen=True)
class Part:
    """One of the parts: where it lies, its files, and the tensors that are used, by their published names."""

    path: Path
    files: list[Path]
    tensors: Tensors

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Parts:
    """All parts; `bridge` and `lora` are of the same file."""

    keys: SalmonnFile
    vicuna: Part
    whisper: Part
    beats: Part
    bridge: Part
    lora: Part
    vicuna_config: LlamaConfig
    whisper_config: WhisperConfig
    beats_config: BeatsConfig

    def identity(self, name: str) -> ModelIdentity:
        """Which model this is."""
        parts = {"vicuna": self.vicuna, "whisper": self.whisper, "beats": self.beats}
        parts |= {"bridge": self.bridge, "lora": self.lora}
        tensors = {
            f"{prefix}.{key}": tensor
            for prefix, part in parts.items()
            for key, tensor in part.tensors.items()
        }
        return ModelIdentity(
            family=FAMILY,
            name=name,
            fingerprint=fingerprint_of(tensors, self._essentials()),
            num_layers=self.vicuna_config.num_hidden_layers,
            num_heads=self.vicuna_config.num_attention_heads,
        )

    def _essentials(self) -> dict[str, Any]:
        """What of the configurations decides over the computation, and no version of a library changes."""
        sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
        decoder_keys = (*sizes, "num_key_value_heads", "vocab_size", "rms_norm_eps")
        encoder_keys = (
            "d_model",
            "encoder_layers",
            "encoder_attention_heads",
            "encoder_ffn_dim",
            "num_mel_bins",
        )
        return {
            "family": FAMILY,
            "decoder": {key: getattr(self.vicuna_config, key) for key in decoder_keys},
            "rope": dict(self.vicuna_config.rope_parameters or {}),
            "whisper": {key: getattr(self.whisper_config, key) for key in encoder_keys},
            "beats": self.beats_config.model_dump(mode="json"),
            "lora_alpha": self.keys.lora_alpha,
            "qformer_heads": self.keys.qformer_heads,
        }


def open_parts(model_file: ModelFile) -> Parts:
    """Find and open what `model_file` names.

    Raises:
        ModelError: a key of the file is wrong, or a part is not there or cannot be read.
    """
    keys, base = SalmonnFile.parse(model_file), model_file.path.parent
    vicuna, whisper = find_folder(keys.vicuna, base), find_folder(keys.whisper, base)
    beats, salmonn = find_file(keys.beats, base), find_file(keys.salmonn, base)
    beats_config, beats_tensors = _read_beats(beats)
    bridge, lora = _read_salmonn(salmonn)
    return Parts(
        keys=keys,
        vicuna=Part(vicuna, weight_files(vicuna), _used(folder_tensors(vicuna))),
        whisper=Part(whisper, weight_files(whisper), _without_decoder(folder_tensors(whisper))),
        beats=Part(beats, [beats], beats_tensors),
        bridge=Part(salmonn, [salmonn], bridge),
        lora=Part(salmonn, [salmonn], lora),
        vicuna_config=LlamaConfig.from_pretrained(vicuna, local_files_only=True),
        whisper_config=WhisperConfig.from_pretrained(whisper, local_files_only=True),
        beats_config=beats_config,
    )


def _used(tensors: Tensors) -> Tensors:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not _COMPUTED.search(name) and not _COPIED.search(name)
    }


def _without_decoder(tensors: Tensors) -> Tensors:
    """Whisper's tensors, less those that no encoder has, under names that begin behind `encoder.`."""
    found = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix("model.")
        if not inner.startswith(("decoder.", "proj_out.")):
            found[inner.removeprefix("encoder.")] = tensor
    return found


def _read_beats(path: Path) -> tuple[BeatsConfig, Tensors]:
    """Configuration and tensors of BEATs; the predictor head of a fine-tuned checkpoint is skipped."""
    content = read_pickle(path)
    if not isinstance(content, Mapping) or not {"cfg", "model"} <= set(content):
        raise ModelError(f"{path}: not a BEATs checkpoint: cfg and model are needed")
    tensors = _used(stored_tensors(path, content["model"]))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("predictor.")}
    return BeatsConfig.parse(content["cfg"]), tensors


def _read_salmonn(path: Path) -> tuple[Tensors, Tensors]:
    """Tensors of the bridge, and of the decoder's LoRA."""
    content = read_pickle(path)
    if not isinstance(content, Mapping) or "model" not in content:
        raise ModelError(f"{path}: not a SALMONN checkpoint: there is no model in it")
    bridge, lora = {}, {}
    for name, tensor in _used(stored_tensors(path, content["model"])).items():
        if name.startswith(_LLAMA):
            lora[name.removeprefix(_LLAMA)] = tensor
        else:
            bridge[name] = tensor
    return bridge, lora
