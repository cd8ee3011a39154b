"""What changes from step to step: the learning rate and the Gumbel temperature."""

from __future__ import annotations

import math

from training.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int) -> float:
    """The learning rate of `step` (from 0): linear warm-up, plateau, decay over the last part of them."""
    if step < optim.lr_warmup_steps:
        return optim.lr_start + (optim.lr - optim.lr_start) * step / optim.lr_warmup_steps
    begin = max(optim.lr_warmup_steps, round(optim.steps * (1 - optim.lr_decay_fraction)))
    if step < begin:
        return optim.lr
    done = (step - begin) / max(1, optim.steps - begin)
    left = 1 - done if optim.lr_decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optim.lr_end + (optim.lr - optim.lr_end) * left


def annealed_tau(step: int, num_steps: int, *, start: float, end: float, fraction: float) -> float:
    """The Gumbel temperature of `step` (from 0): linear over the first `fraction` of steps, then `end`."""
    annealing = num_steps * fraction
    if step >= annealing:
        return end
    return start + (end - start) * step / annealing
