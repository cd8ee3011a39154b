"""Low-rank updates (LoRA) that become part of a model's weights when it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from lalm.errors import ModelError


def check_in_memory(peft: PeftModel) -> None:
    """No weight with LoRA may be offloaded: there is nothing on the device that an update could be added to.

    Raises:
        ModelError: one is.
    """
    for name, layer in peft.named_modules():
        if isinstance(layer, LoraLayer) and layer.get_base_layer().weight.is_meta:
            weight = name.removeprefix("base_model.model.")
            kinds = ", ".join(sorted(_kinds(peft)))
            raise ModelError(
                f"the device map offloads {weight}.weight, which LoRA is merged into: what has LoRA "
                f"({kinds}) has to stay on a device in every layer; the rest may be offloaded"
            )


def merge_lora(peft: PeftModel) -> Any:
    """The model that `peft` is about, with W + alpha / rank · B A for each of its W that has LoRA.

    W: [out, in] in any float dtype, as it was loaded. The sum is computed in float32, one matrix at a time,
    and rounded once, to the dtype of W; peft alone would round B A before it adds it, and the sum again.
    Source: LoRA (arXiv 2106.09685), section 4.1.

    Raises:
        ModelError: a device map offloads a weight with LoRA.
        ValueError: a sum is not finite.
    """
    check_in_memory(peft)
    for layer in peft.modules():
        if isinstance(layer, LoraLayer):
            weight: Any = layer.get_base_layer().weight
            dtype = weight.dtype
            weight.data = weight.data.float()
            layer.merge(safe_merge=True)
            weight.data = weight.data.to(dtype)
            if not torch.isfinite(weight.data).all():
                raise ValueError(f"a weight with LoRA is beyond the range of {dtype}")
    return peft.unload()


def _kinds(peft: PeftModel) -> set[str]:
    """Last names of the modules with LoRA."""
    return {name.split(".")[-1] for name, layer in peft.named_modules() if isinstance(layer, LoraLayer)}
