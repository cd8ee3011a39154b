"""What a head mask is trained for: the answer, from audio alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from training.batches import END, AnswerData, Batch
from training.config import Amp
from training.memory import autocast
from training.processes import ALONE, Processes

Reduction = Literal["token_mean", "sample_sum"]


@dataclass(frozen=True)
class AnswerLoss:
    """Negative log-likelihood of the answers of a batch: the sum in nats, over what."""

    total: Tensor
    num_tokens: int
    num_samples: int

    def reduced(self, reduction: Reduction) -> Tensor:
        """Mean of a token, or mean over samples of the sum over the tokens of an answer."""
        return self.total / (self.num_tokens if reduction == "token_mean" else self.num_samples)


def answer_loss(family: ModelFamily, batch: Batch, head_gate: Tensor | None, amp: Amp = "off") -> AnswerLoss:
    """Next-token cross-entropy of the answers in `batch` and of the end behind each, in float32.

    head_gate: [num_layers, batch, num_heads], or None for the plain model. The language model head is
    computed where an answer is predicted only. Where a model has several end tokens, the probability of the
    end is their sum.
    """
    if head_gate is not None:
        head_gate = head_gate.to(family.dtype)
    with autocast(amp, family.device):
        output = family.decoder(inputs_embeds=batch.inputs_embeds, use_cache=False, head_gate=head_gate)
        logits = family.lm_head(output.last_hidden_state[batch.rows, batch.positions])
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    at_end = batch.targets == END
    chosen = log_probs.gather(1, batch.targets.clamp(min=0)[:, None])[:, 0]
    ends = log_probs[:, sorted(family.eos_token_ids)].logsumexp(dim=-1)
    nll = -torch.where(at_end, ends, chosen)
    return AnswerLoss(nll.sum(), len(nll), batch.size)


@torch.no_grad()
def mean_loss(
    family: ModelFamily,
    data: AnswerData,
    head_mask: HeadMask | None,
    *,
    batch_size: int,
    reduction: Reduction,
    amp: Amp = "off",
    processes: Processes = ALONE,
) -> float:
    """The loss over all of `data` under a binary head mask, or under none; every process computes a share."""
    total, num_tokens, num_samples = 0.0, 0.0, 0.0
    for indices in processes.share(by_length(data.lengths(), batch_size)):
        batch = data.batch(indices)
        gate = None
        if head_mask is not None:
            shape = (family.identity.num_layers, family.identity.num_heads)
            gate = gate_tensor([head_mask] * batch.size, *shape, family.device, family.dtype)
        loss = answer_loss(family, batch, gate, amp)
        total += loss.total.item()
        num_tokens += loss.num_tokens
        num_samples += loss.num_samples
    total, num_tokens, num_samples = processes.sums(total, num_tokens, num_samples)
    return total / (num_tokens if reduction == "token_mean" else num_samples)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All indices in batches of like length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
