"""Low-rank updates (LoRA) that become part of a model's weights when it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer


def merge_lora(peft: PeftModel) -> Any:
    """The model that `peft` is about, with W + alpha / rank · B A for each of its W that has LoRA.

    W: [out, in] in any float dtype, as it was loaded. The sum is computed in float32, one matrix at a time,
    and rounded once, to the dtype of W; peft alone would round B A before it adds it, and the sum again.
    Source: LoRA (arXiv 2106.09685), section 4.1.

    Raises:
        ValueError: a sum is not finite.
    """
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
