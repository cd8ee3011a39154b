"""The paper's training loop, straightforwardly: what `benchmarks.training` compares with.

- per-head output weights are expanded to the batch and multiplied by each sample's gates;
- attention weights are materialised, keys and values repeated for every query head;
- every step decodes its recordings, computes features and encodes them;
- logits of every position of every row.

All in the dtype of the model, which is float32 by default. Batches, gates, learning rate and loss are those
of `training`, so that the losses have to be equal.

Source: AHAMask (arXiv 2509.01787), the masked multi-head attention equation, computed as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from lalm.family import ModelFamily
from training.batches import END
from training.checkpoint import TrainState
from training.config import TrainConfig
from training.manifest import Example
from training.plan import BatchPlan
from training.schedule import learning_rate
from training.step import tau_of

ATTENTION = "materialised"


def materialised_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, Tensor]:
    """softmax(QK^T)V with its weights [batch, num_heads, seq, seq] kept."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * module.scaling
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, materialised_attention)


class ExpandedOutput(nn.Module):
    """An output projection with its own weights for every sample: W_O of each head times the head's gate."""

    def __init__(self, projection: nn.Linear, num_heads: int) -> None:
        super().__init__()
        self._projection = projection
        self._num_heads = num_heads
        self.gate: Tensor | None = None  # [batch, num_heads]

    def forward(self, heads: Tensor) -> Tensor:
        """Heads [batch, seq, num_heads * head_dim] to [batch, seq, hidden]."""
        assert self.gate is not None
        weight = self._projection.weight  # [hidden, num_heads * head_dim]
        each = weight.view(weight.shape[0], self._num_heads, -1).expand(len(self.gate), -1, -1, -1)
        gated = (each * self.gate[:, None, :, None]).flatten(2)
        return torch.bmm(heads, gated.transpose(1, 2))


@contextmanager
def plain_decoder(decoder: Any) -> Iterator[list[ExpandedOutput]]:
    """Inside the block `decoder` computes as above; yields the output projections, whose gates are to be set.

    decoder: layers of the usual form (`layers[i].self_attn.o_proj`, without bias), as of Qwen2 and LLaMA.
    """
    before = decoder.config._attn_implementation
    attentions = [layer.self_attn for layer in decoder.layers]
    projections = [attention.o_proj for attention in attentions]
    outputs = [ExpandedOutput(each, decoder.config.num_attention_heads) for each in projections]
    decoder.set_attn_implementation(ATTENTION)
    for attention, output in zip(attentions, outputs, strict=True):
        attention.o_proj = output
    try:
        yield outputs
    finally:
        for attention, projection in zip(attentions, projections, strict=True):
            attention.o_proj = projection
        decoder.set_attn_implementation(before)


def plain_step(
    config: TrainConfig,
    family: ModelFamily,
    examples: tuple[Example, ...],
    plan: BatchPlan,
    state: TrainState,
    outputs: list[ExpandedOutput],
) -> float:
    """One step; returns its loss, reduced as the recipe says."""
    optim = config.optim
    chosen = [examples[index] for index in plan.indices(state.step)]
    inputs_embeds, targets = batch_of(family, chosen)
    gate = state.mask_logits.sample(len(chosen), tau_of(optim, state.step))
    for output, layer_gate in zip(outputs, gate, strict=True):
        output.gate = layer_gate.to(family.dtype)
    hidden = family.decoder(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
    log_probs = torch.log_softmax(family.lm_head(hidden).float(), dim=-1)
    ends = log_probs[..., sorted(family.eos_token_ids)].logsumexp(dim=-1)
    chosen_probs = log_probs.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    nll = -torch.where(targets == END, ends, chosen_probs)[targets != NOTHING].sum()
    over = int((targets != NOTHING).sum()) if optim.loss == "token_mean" else len(chosen)
    num_active = gate.sum(dim=(0, 2)).mean()
    penalty = optim.sparsity_lambda * (num_active - (optim.target_num_heads or 0)).abs()
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optim, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    (nll / over + penalty).backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    return nll.item() / over


NOTHING = -2  # target of a position where nothing is predicted


def batch_of(family: ModelFamily, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Prompts with answers [batch, seq, hidden], and the targets of every position [batch, seq]."""
    clips = [
        [family.features(wave) for wave in example.waveforms(family.max_audio_s, family.audio_input)]
        for example in examples
    ]
    embeds = iter(family.embed_audio([features for clip in clips for features in clip]))
    sequences, targets = [], []
    for example, clip in zip(examples, clips, strict=True):
        with torch.no_grad():
            prompt = family.embed_prompt([next(embeds) for _ in clip])
            ids = torch.tensor(family.encode_text(example.text), device=family.device)
            sequences.append(torch.cat([prompt, family.decoder.get_input_embeddings()(ids)]))
        nothing = torch.full((len(prompt) - 1,), NOTHING, device=family.device)
        end = torch.tensor([END], device=family.device)
        targets.append(torch.cat([nothing, ids, end]))
    padded = pad_sequence(sequences, batch_first=True)
    return padded, pad_sequence(targets, batch_first=True, padding_value=NOTHING)
