"""One step of a head mask's training on random embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu_decode import random_embeddings
from lalm.family import ModelFamily
from training.batches import Batch
from training.mask_logits import MaskLogits
from training.objective import answer_loss


def training_step(
    family: ModelFamily, batch_size: int, prompt_tokens: int, answer_tokens: int
) -> Callable[[], None]:
    """A step as the recipe makes it: gates drawn, loss of the answers, backward to the logits, AdamW."""
    length, device = prompt_tokens + answer_tokens, family.device
    embeds = torch.stack([random_embeddings(family, length, seed) for seed in range(batch_size)])
    columns = torch.arange(prompt_tokens - 1, length - 1, device=device)
    batch = Batch(
        inputs_embeds=embeds,
        rows=torch.arange(batch_size, device=device).repeat_interleave(answer_tokens),
        positions=columns.repeat(batch_size),
        targets=torch.arange(batch_size * answer_tokens, device=device) % 500,
    )
    logits = MaskLogits(
        family.identity.num_layers,
        family.identity.num_heads,
        init_mean=4.0,
        init_std=0.02,
        generator=torch.Generator().manual_seed(0),
    ).to(device)
    optimizer = torch.optim.AdamW(logits.parameters(), lr=1e-2)

    def step() -> None:
        loss = answer_loss(family, batch, logits.sample(batch_size, tau=1.0)).reduced("token_mean")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
