"""Heads of a new audio encoder that begin with listening next to a frame.

The encoder knows where a frame is by the sinusoids that are added to it once, before the first layer. From
random weights its heads learn to average over everything, and stay with that: what is heard is which sounds
there are, hardly in which order. So most heads of a new encoder begin with attending to the frame at a fixed
distance before or behind the one they serve; their query is their key's position code, turned by that
distance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS = 8
OFFSETS = (
    (-3, -2, -1, 1, 2, 3),
    (-6, -4, -2, 2, 4, 6),
    (-9, -5, -2, 2, 5, 9),
    (-4, -2, -1, 1, 2, 4),
    (-12, -6, -2, 2, 6, 12),
    (-4, -2, -1, 1, 2, 4),
)  # frames of 20 ms, of each layer's first heads; the others begin at random
PEAK = 9.0  # attention logit at the offset, where positions can be read without error
RIDGE = 1e-3


def frequencies(count: int) -> Tensor:
    """Every second of the fastest sinusoids of the encoder's position embedding, radians a frame [count]."""
    return 10_000.0 ** (-2 * torch.arange(count) / 127)


def frames(tower: Any, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a tower's first layer gets of log-mels [batch, num_mel_bins, frames] of true lengths [batch].

    Returns:
        Frames at 50 Hz [batch, frames // 2, d_model], their number [batch], and which of them exist
        [batch, frames // 2].
    """
    hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(mels)))).transpose(1, 2)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    num_frames = (lengths - 1) // 2 + 1
    return hidden, num_frames, torch.arange(hidden.shape[1], device=mels.device) < num_frames[:, None]


@torch.no_grad()
def give_local_heads(tower: Any, mels: Tensor, lengths: Tensor) -> None:
    """Set queries and keys of a new tower's first heads, layer by layer; how a layer's input tells positions
    is fitted on what it is for some clips.

    Args:
        tower: Qwen2-Audio encoder with `HEADS` heads a layer.
        mels: log-mels float32 [batch, num_mel_bins, frames]; lengths: frames that exist, [batch].
    """
    hidden, _, valid = frames(tower, mels, lengths)
    size = tower.config.d_model // HEADS
    turns = frequencies(size // 2)
    angles = torch.arange(hidden.shape[1])[:, None] * turns
    code = torch.cat([angles.cos(), angles.sin()], dim=1).expand(len(mels), -1, -1)[valid]
    scale = (PEAK * size**0.5 / (size // 2)) ** 0.5
    for layer, offsets in zip(tower.layers, OFFSETS, strict=True):
        attention = layer.self_attn
        cosine, sine = (scale * _readout(layer.self_attn_layer_norm(hidden)[valid], code)).chunk(2)
        for head, offset in enumerate(offsets):
            rows = slice(head * size, (head + 1) * size)
            turn = (turns * offset)[:, None]
            attention.k_proj.weight[rows] = torch.cat([cosine, sine])
            attention.q_proj.weight[rows] = torch.cat(
                [cosine * turn.cos() - sine * turn.sin(), sine * turn.cos() + cosine * turn.sin()]
            )
        hidden = layer(hidden, valid[:, None, None, :])


def _readout(inputs: Tensor, code: Tensor) -> Tensor:
    """The linear map from a layer's inputs [frames, width] to position codes [frames, size], by ridge
    regression: [size, width]."""
    x = inputs.double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights: Tensor = torch.linalg.solve(gram, x.T @ code.double())
    return weights.T.float()
