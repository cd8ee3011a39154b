"""The one thing that is trained: a logit a head, and how it becomes a gate.

Source: AHAMask (arXiv 2509.01787), "Method": Gumbel-sigmoid with a straight-through estimator.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lalm.head_mask import HeadMask


class MaskLogits(nn.Module):
    """Mask logits, float32 [num_layers, num_heads], on the device of the model.

    The generator lives on the CPU, so that every device sees the same draws; its state is part of a
    training checkpoint.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        *,
        init_mean: float,
        init_std: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        noise = torch.randn(num_layers, num_heads, generator=generator)
        self.logits = nn.Parameter(init_mean + init_std * noise)
        self.generator = generator

    def sample(self, batch: int, tau: float) -> Tensor:
        """Draw a gate for each of `batch` samples: float32 [num_layers, batch, num_heads] of 0 and 1.

        s = sigmoid((logit + g) / tau), g = log(e), e ~ Exp(1): a left-tail Gumbel draw, anew for each sample
        and head. Forward is s > 0.5, backward the gradient of s.
        """
        num_layers, num_heads = self.logits.shape
        uniform = torch.empty(num_layers, batch, num_heads)
        noise = uniform.exponential_(generator=self.generator).log().to(self.logits.device)
        return straight_through(self.logits, noise, tau)

    def binarised(self) -> HeadMask:
        """The head mask at inference: a head is active where sigmoid(logit) >= 0.5 in float32."""
        return binarise(self.logits)


def straight_through(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Gates of 0 and 1 with the gradient of the sigmoid; logits [num_layers, num_heads].

    noise: what was drawn, [num_layers, batch, num_heads], of which the result has the shape.
    """
    soft = torch.sigmoid((logits[:, None, :] + noise) / tau)
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())  # the bracket is exactly 0 forward


def binarise(logits: Tensor) -> HeadMask:
    """Logits [num_layers, num_heads] as a head mask; 0.0 and what rounds to it in float32 are active."""
    active = torch.sigmoid(logits.detach().float()) >= 0.5
    return HeadMask(np.asarray(active.cpu().numpy(), dtype=np.bool_))
