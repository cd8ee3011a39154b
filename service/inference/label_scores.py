"""Probabilities of a label task's labels, from the one pass that answers it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from service.inference.draft import Draft


def label_scores(draft: Draft, logits: Tensor, eos_token_ids: Collection[int]) -> dict[str, float]:
    """How likely each label is to be the whole answer, among the labels of the set; they add up to 1.

    logits: [1 + len(draft), vocab_size], behind the prompt and behind each node of the draft.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    totals = []
    for end in draft.labels.values():
        path = draft.path(end)
        behind = [0, *(1 + node for node in path)]
        spelled = log_probs[behind[:-1], [draft.tokens[node] for node in path]].sum()
        totals.append(spelled + log_probs[behind[-1], list(eos_token_ids)].logsumexp(0))
    return dict(zip(draft.labels, torch.stack(totals).softmax(0).tolist(), strict=True))
