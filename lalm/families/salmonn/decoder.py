"""SALMONN's decoder: Vicuna with the checkpoint's LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import LlamaForCausalLM

from lalm.errors import ModelError
from lalm.families.lora import check_in_memory, merge_lora
from lalm.families.placement import Placement
from lalm.families.salmonn.checkpoint import Tensors, check_keys, check_shape
from lalm.families.salmonn.parts import Parts

_ADAPTED = ("q_proj", "v_proj")


def check_decoder(parts: Parts) -> None:
    """See that Vicuna and its LoRA have every tensor, and no other, before anything is loaded.

    Raises:
        ModelError: tensors are missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        llama = LlamaForCausalLM(parts.vicuna_config)
    _check(parts.vicuna.path, llama.state_dict(), parts.vicuna.tensors)
    peft = _adapted(llama, parts)
    _check(parts.lora.path, get_peft_model_state_dict(peft), _lora(parts))


def load_decoder(parts: Parts, placement: Placement) -> LlamaForCausalLM:
    """Vicuna with its LoRA: merged, or beside the weights where those are quantized.

    Raises:
        ModelError: the device map offloads weights that LoRA is for.
        Exception: what transformers raises on damaged files.
    """
    llama = load_vicuna(parts, placement)
    peft = add_lora(llama, parts)
    if getattr(llama, "is_quantized", False):
        return llama
    merged: LlamaForCausalLM = merge_lora(peft)
    return merged


def load_vicuna(parts: Parts, placement: Placement) -> LlamaForCausalLM:
    """Vicuna, loaded straight onto its devices, one tensor after the other.

    Raises:
        Exception: what transformers raises on damaged files.
    """
    placed = placement.arguments(LlamaForCausalLM, parts.vicuna_config)
    llama: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        parts.vicuna.path,
        config=parts.vicuna_config,
        **{"device_map": {"": placement.device}, **placed},
        attn_implementation="sdpa",
        local_files_only=True,
        weights_only=True,
    )
    return llama


def add_lora(llama: LlamaForCausalLM, parts: Parts) -> PeftModel:
    """The decoder with the low-rank updates of the checkpoint beside the weights they belong to.

    Raises:
        ModelError: the device map offloads one of these.
    """
    peft = _adapted(llama, parts)
    check_in_memory(peft)
    set_peft_model_state_dict(peft, {name: tensor[...] for name, tensor in _lora(parts).items()})
    return peft


def _adapted(llama: LlamaForCausalLM, parts: Parts) -> PeftModel:
    """The decoder with LoRA that does nothing yet, of the rank the checkpoint has."""
    lora = _lora(parts)
    ranks = {tensor.get_shape()[0] for name, tensor in lora.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ModelError(f"{parts.lora.path}: LoRA of one rank is needed, found ranks {sorted(ranks)}")
    config = LoraConfig(
        r=ranks.pop(), lora_alpha=parts.keys.lora_alpha, target_modules=list(_ADAPTED), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # peft calls what transformers has renamed
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        return get_peft_model(llama, config)


def _lora(parts: Parts) -> Tensors:
    """The low-rank updates under peft's names."""
    return {name.replace(".default.", "."): tensor for name, tensor in parts.lora.tensors.items()}


def _check(path: Path, wanted: Mapping[str, Tensor], stored: Tensors) -> None:
    check_keys(path, wanted, stored)
    for name, parameter in wanted.items():
        check_shape(path, name, stored[name], parameter)
