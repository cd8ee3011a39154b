"""The optimizer of both stages (Muon for the matrices of transformer layers, AdamW for everything else), and
the average of the weights that it leaves.

Source: Muon, Keller Jordan 2024 (kellerjordan.github.io/posts/muon), as torch has it, its updates scaled to
the size of AdamW's (Liu et al., arXiv 2502.16982), so that both take one learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MAX_GRAD_NORM = 1.0
WEIGHT_DECAY = 0.01
AVERAGED_SHARE = 0.3  # of the steps, as far as an average of the weights reaches back


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


class WeightAverage:
    """Exponential average of the weights of `modules` in the course of `steps`; unheard voices gain by it."""

    def __init__(self, modules: Iterable[nn.Module], steps: int) -> None:
        self._modules = nn.ModuleList(modules)
        decay = 1 - 1 / max(1.0, AVERAGED_SHARE * steps)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._modules, multi_avg_fn=average)

    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self._average.update_parameters(self._modules)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in the place of the weights."""
        for weight, average in zip(
            self._modules.parameters(), self._average.module.parameters(), strict=True
        ):
            weight.copy_(average)
