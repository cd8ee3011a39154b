"""SALMONN's decoder: Vicuna with the checkpoint's LoRA merged into it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import LlamaForCausalLM

from lalm.errors import ModelError
from lalm.families.salmonn.checkpoint import check_keys, check_shape
from lalm.families.salmonn.parts import Parts

_ADAPTED = ("q_proj", "v_proj")


def load_vicuna(parts: Parts, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Vicuna, loaded straight onto the device, one tensor after the other.

    Raises:
        ModelError: tensors are missing or unknown; what transformers raises on damaged files comes through.
    """
    folder = parts.vicuna.path
    with torch.device("meta"):
        wanted = LlamaForCausalLM(parts.vicuna_config).state_dict()
    check_keys(folder, wanted, parts.vicuna.tensors)
    llama: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        folder,
        config=parts.vicuna_config,
        dtype=dtype,
        device_map={"": device},
        attn_implementation="sdpa",
        local_files_only=True,
        weights_only=True,
    )
    return llama


def merge_lora(llama: LlamaForCausalLM, parts: Parts) -> LlamaForCausalLM:
    """Add the low-rank updates to the weights they belong to: W + alpha / rank · B A.

    Source: LoRA (arXiv 2106.09685), section 4.1.

    Raises:
        ModelError: tensors are missing or unknown, or have other shapes than the decoder.
    """
    peft: Any = add_lora(llama, parts)
    merged: LlamaForCausalLM = peft.merge_and_unload(progressbar=False, safe_merge=True)
    return merged


def add_lora(llama: LlamaForCausalLM, parts: Parts) -> PeftModel:
    """`merge_lora` without the merging: the updates stay beside the weights.

    Raises:
        ModelError: as `merge_lora`.
    """
    path = parts.lora.path
    stored = {name.replace(".default.", "."): tensor for name, tensor in parts.lora.tensors.items()}
    ranks = {tensor.get_shape()[0] for name, tensor in stored.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ModelError(f"{path}: LoRA of one rank is needed, found ranks {sorted(ranks)}")
    rank = ranks.pop()
    config = LoraConfig(
        r=rank, lora_alpha=parts.keys.lora_alpha, target_modules=list(_ADAPTED), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="transformers"
        )  # of peft's own doing
        peft = get_peft_model(llama, config)
    wanted: Mapping[str, Tensor] = get_peft_model_state_dict(peft)
    check_keys(path, wanted, stored)
    for name, parameter in wanted.items():
        check_shape(path, name, stored[name], parameter)
    set_peft_model_state_dict(peft, {name: stored[name][...] for name in wanted})
    return peft
