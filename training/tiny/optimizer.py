"""The optimizer of both stages: Muon for the matrices of transformer layers, AdamW for everything else.

Source: Muon, Keller Jordan 2024 (kellerjordan.github.io/posts/muon), as torch has it, its updates scaled to
the size of AdamW's (Liu et al., arXiv 2502.16982), so that both take one learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

MAX_GRAD_NORM = 1.0
WEIGHT_DECAY = 0.01


class MatrixOptimizer:
    """Optimizes every parameter of `modules` that takes gradients; matrices are those in their ``layers``."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and name.startswith("layers.")]
        taken = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in taken]
        self._parameters = [p for _, p in named]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """Backward pass and update with learning rate `rate`; gradients are clipped to `MAX_GRAD_NORM`."""
        for part in self._parts:
            part.zero_grad()
            part.param_groups[0]["lr"] = rate
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        for part in self._parts:
            part.step()
