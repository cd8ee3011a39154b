"""What makes a step smaller or faster: autocast, its loss scaling, and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from training.config import Amp
from training.errors import TrainingError


def autocast(amp: Amp, device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in `amp` inside the block; "off" changes nothing."""
    dtype = torch.float16 if amp == "float16" else torch.bfloat16
    context: Any = torch.autocast(device.type, dtype=dtype, enabled=amp != "off")
    return context  # type: ignore[no-any-return]


def grad_scaler(amp: Amp, device: torch.device) -> torch.amp.GradScaler:
    """What keeps small gradients from vanishing in float16; it does nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=amp == "float16")


@contextmanager
def gradient_checkpointing(decoder: Any, *, enabled: bool) -> Iterator[None]:
    """Inside the block the layers of `decoder` compute their activations again in the backward pass.

    transformers' layers do so in training mode only; each layer's own flag is set, what is inside it stays in
    evaluation mode, so that no dropout starts.

    Raises:
        TrainingError: the decoder cannot do it.
    """
    if not enabled:
        yield
        return
    if not getattr(decoder, "supports_gradient_checkpointing", False):
        raise TrainingError(f"run.gradient_checkpointing: {type(decoder).__name__} has none")
    _switch(decoder, "enable", {"use_reentrant": False})
    layers = [module for module in decoder.modules() if getattr(module, "gradient_checkpointing", False)]
    layers = [layer for layer in layers if layer is not decoder]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        _switch(decoder, "disable")


def _switch(decoder: Any, what: str, *arguments: Any) -> None:
    """transformers 5.24 calls it activation checkpointing, and warns of the older name."""
    switch = getattr(decoder, f"activation_checkpointing_{what}", None)
    (switch or getattr(decoder, f"gradient_checkpointing_{what}"))(*arguments)
