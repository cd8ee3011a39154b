"""Flips of single heads after a training, each accepted on development data only.

The heads whose logits are nearest to 0 are the least decided. Each is flipped once, in that order; a flip
stays where the development data is answered better with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lalm.head_mask import HeadMask
from training.mask_logits import binarise

SMALLEST_LOGIT = 1e-3  # a logit of 0 has no sign to turn


@dataclass(frozen=True)
class Refined:
    """What came of a refinement; values are those of the measure, lower is better.

    logits: float32 [num_layers, num_heads], the flipped ones with their sign turned.
    """

    logits: Tensor
    before: float
    after: float
    num_tried: int
    flipped: tuple[tuple[int, int], ...]


def refine(
    logits: Tensor,
    measure: Callable[[HeadMask], float],
    *,
    num_candidates: int,
    min_gain: float = 0.0,
    on_tried: Callable[[], None] = lambda: None,
) -> Refined:
    """Flip heads of the mask that `logits` [num_layers, num_heads] stand for, where `measure` falls.

    min_gain: a flip stays if the measure falls by more than this. The last active head is never flipped.
    """
    logits, num_heads = logits.clone(), logits.shape[1]
    before = best = measure(binarise(logits))
    flipped: list[tuple[int, int]] = []
    order = torch.argsort(logits.abs().flatten(), stable=True)[:num_candidates].tolist()
    for flat in order:
        layer, head = divmod(flat, num_heads)
        trial = logits.clone()
        trial[layer, head] = _turned(float(logits[layer, head]))
        head_mask = binarise(trial)
        value = measure(head_mask) if head_mask.num_active else best
        if value < best - min_gain:
            logits, best = trial, value
            flipped.append((layer, head))
        on_tried()
    return Refined(logits, before, best, len(order), tuple(flipped))


def _turned(logit: float) -> float:
    size = max(abs(logit), SMALLEST_LOGIT)
    return -size if bool(binarise(torch.tensor([[logit]])).num_active) else size
