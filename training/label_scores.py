"""How likely each label is as the whole answer: the scores behind an equal error rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from training.batches import AudioEmbeddings
from training.metrics.measured import Floats
from training.objective import by_length


@torch.no_grad()
def label_scores(
    family: ModelFamily,
    audio: AudioEmbeddings,
    labels: Sequence[str],
    *,
    head_mask: HeadMask | None,
    instruction: str | None,
    batch_size: int = 16,
) -> Floats:
    """Log-probabilities of each label and the end behind it, in nats: float64 [num_examples, num_labels].

    Where a model has several end tokens, the probability of the end is their sum.
    """
    scores = np.zeros((len(audio), len(labels)))
    lengths = [audio.num_tokens(index) for index in range(len(audio))]
    for indices in by_length(lengths, batch_size):
        prompts = [family.embed_prompt(embeds, instruction) for embeds in audio.get(indices)]
        for column, label in enumerate(labels):
            scores[indices, column] = _log_probs(family, prompts, label, head_mask).double().cpu().numpy()
    return scores


def _log_probs(
    family: ModelFamily, prompts: Sequence[Tensor], label: str, head_mask: HeadMask | None
) -> Tensor:
    """Of `label` behind each prompt [prompt_len, hidden]: float32 [batch]."""
    ids = torch.tensor(family.encode_text(label), dtype=torch.long, device=family.device)
    embedded = family.decoder.get_input_embeddings()(ids)
    # Attention is causal: what stands in a row sees nothing of the padding behind it.
    sequences = pad_sequence(
        [torch.cat([prompt, embedded.to(prompt.dtype)]) for prompt in prompts], batch_first=True
    )
    gate = None
    if head_mask is not None:
        shape = (family.identity.num_layers, family.identity.num_heads)
        gate = gate_tensor([head_mask] * len(prompts), *shape, family.device, family.dtype)
    hidden = family.decoder(inputs_embeds=sequences, use_cache=False, head_gate=gate).last_hidden_state
    steps = torch.arange(len(ids) + 1, device=family.device)
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=family.device)
    positions = starts[:, None] + steps
    rows = torch.arange(len(prompts), device=family.device)[:, None]
    log_probs = torch.log_softmax(family.lm_head(hidden[rows, positions]).float(), dim=-1)
    of_label = log_probs[:, torch.arange(len(ids), device=family.device), ids].sum(dim=1)
    of_end = log_probs[:, -1, sorted(family.eos_token_ids)].logsumexp(dim=-1)
    return of_label + of_end
