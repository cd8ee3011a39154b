"""BEATs, the audio encoder beside Whisper: filter-bank features to hidden states at 50 Hz.

Source: BEATs (arXiv 2212.09058), "Backbone": a Vision-Transformer-like stack over 16 x 16 patches of the
spectrogram, with the gated relative position bias of WavLM (arXiv 2110.13900, section 3.2) and the residual
scaling of DeepNorm (arXiv 2203.00555). Only what an encoder does at inference is here: neither the tokenizer
nor the predictor head of a fine-tuned checkpoint.

Modules and parameters are named as in the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from lalm.errors import ModelError

PATCH = 16
NUM_GATE_LOGITS = 8  # outputs of `grep_linear`: four are summed for each of two gates


class BeatsConfig(BaseModel):
    """What of a checkpoint's `cfg` decides over the computation; its other keys are about training."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input_patch_size: int
    embed_dim: int
    conv_bias: bool
    encoder_layers: int
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_attention_heads: int
    activation_fn: str
    layer_norm_first: bool
    deep_norm: bool
    conv_pos: int
    conv_pos_groups: int
    relative_position_embedding: bool
    num_buckets: int
    max_distance: int
    gru_rel_pos: bool

    @classmethod
    def parse(cls, cfg: Mapping[str, Any]) -> BeatsConfig:
        """From the `cfg` of a checkpoint.

        Raises:
            ModelError: a key is missing, or the checkpoint is of a variant that is not built here.
        """
        try:
            config = cls.model_validate(cfg)
        except ValidationError as error:
            raise ModelError(f"the BEATs cfg cannot be used: {error.errors()[0]}") from error
        built = {
            "input_patch_size": PATCH,
            "activation_fn": "gelu",
            "conv_bias": False,
            "layer_norm_first": False,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
        }
        for key, value in built.items():
            if getattr(config, key) != value:
                raise ModelError(
                    f"BEATs with {key} = {getattr(config, key)!r} is not supported, only {value!r}"
                )
        return config


class Beats(nn.Module):
    """The encoder; `forward` gives the last hidden states."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, PATCH, stride=PATCH, bias=False)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj: nn.Module = nn.Identity()
        if config.embed_dim != config.encoder_embed_dim:
            self.post_extract_proj = nn.Linear(config.embed_dim, config.encoder_embed_dim)
        self.encoder = _Encoder(config)

    def forward(self, fbank: Tensor, num_frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Encode a batch; a clip's hidden states do not depend on the other clips.

        fbank: normalised [batch, longest, 128]; num_frames: of each clip, at least 16.
        Returns the hidden states [batch, num_positions, hidden], zero behind a clip's own positions, and
        which positions are a clip's own, bool [batch, num_positions].
        """
        patches = self.patch_embedding(fbank[:, None])
        per_step = patches.shape[3]
        hidden = self.layer_norm(patches.flatten(2).transpose(1, 2))
        hidden = self.post_extract_proj(hidden)
        lengths = torch.tensor([frames // PATCH * per_step for frames in num_frames], device=hidden.device)
        valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        return self.encoder(hidden, valid), valid


class _Encoder(nn.Module):
    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.pos_conv = nn.Sequential(
            nn.Conv1d(
                width, width, config.conv_pos, padding=config.conv_pos // 2, groups=config.conv_pos_groups
            )
        )
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        self.position_bias = _PositionBias(config)

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """hidden: [batch, num_positions, width]; valid: bool [batch, num_positions]."""
        own = valid[..., None]
        num_positions = hidden.shape[1]
        hidden = hidden * own
        # an even kernel gives one position more than there are
        around = self.pos_conv(hidden.transpose(1, 2))[..., :num_positions].transpose(1, 2)
        hidden = self.layer_norm(hidden + F.gelu(around))
        bias = self.position_bias(num_positions)
        for layer in self.layers:
            hidden = layer(hidden, bias, valid)
        return hidden * own


class _PositionBias(nn.Module):
    """The bias of attention by distance, shared by all layers.

    Source: T5 (arXiv 1910.10683), section 2.1: exact buckets for near positions, logarithmic ones beyond.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self._num_buckets = config.num_buckets
        self._max_distance = config.max_distance

    def forward(self, num_positions: int) -> Tensor:
        """[num_heads, num_positions, num_positions]: of a query, for each key."""
        weight = self.relative_attention_bias.weight
        positions = torch.arange(num_positions, device=weight.device)
        buckets = self._bucket(positions[None, :] - positions[:, None])
        return F.embedding(buckets, weight).permute(2, 0, 1)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Buckets of int distances, key minus query: half of them for keys behind the query."""
        per_side = self._num_buckets // 2
        num_exact = per_side // 2
        size = distance.abs()
        far = torch.log(size.clamp(min=1).float() / num_exact) / math.log(self._max_distance / num_exact)
        far = (num_exact + (far * (per_side - num_exact)).long()).clamp(max=per_side - 1)
        return (distance > 0).long() * per_side + torch.where(size < num_exact, size, far)


class _Layer(nn.Module):
    """Attention and feed-forward, each followed by its norm."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.self_attn = _Attention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        # Source: DeepNorm (arXiv 2203.00555), table 1: alpha of an encoder of N layers is (2 N)^(1/4)
        self._residual = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, hidden: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
        hidden = self.self_attn_layer_norm(hidden * self._residual + self.self_attn(hidden, bias, valid))
        inner = self.fc2(F.gelu(self.fc1(hidden)))
        out: Tensor = self.final_layer_norm(hidden * self._residual + inner)
        return out


class _Attention(nn.Module):
    """Self-attention under the gated relative position bias.

    The paper's code divides the scores by 32, subtracts their maximum and multiplies by 32 again before it
    adds the bias, against overflow in half precision. A softmax does not see what is subtracted from a whole
    row, and SDPA accumulates scores in float32: the result is the same.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // num_heads, NUM_GATE_LOGITS)
        self.grep_a = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, hidden: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
        """hidden: [batch, seq, width]; bias: [num_heads, seq, seq]; valid: bool [batch, seq], of the keys."""
        query, key, value = (
            proj(hidden).unflatten(2, (self._num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        # [batch, num_heads, seq, seq], the largest tensor of all, in half precision where attention is
        gated = self._gate(query).to(query.dtype) * bias.to(query.dtype)
        gated.masked_fill_(~valid[:, None, None, :], float("-inf"))
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=gated)
        projected: Tensor = self.out_proj(output.transpose(1, 2).flatten(2))
        return projected

    def _gate(self, query: Tensor) -> Tensor:
        """How strongly each query takes the bias: [batch, num_heads, seq, 1].

        Source: WavLM (arXiv 2110.13900), equations 5 to 8.
        """
        logits = self.grep_linear(query).unflatten(-1, (2, NUM_GATE_LOGITS // 2)).sum(-1)
        update, reset = torch.sigmoid(logits).chunk(2, dim=-1)
        return update * (reset * self.grep_a - 1.0) + 2.0
