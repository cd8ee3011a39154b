"""Mask training on SALMONN: loss and gradients are those of the published code."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lalm.families import load_family
from lalm.family import ModelFamily
from tests.salmonn_toy import MODEL_FILE, Reference
from training.batches import END, Batch
from training.mask_logits import straight_through
from training.objective import answer_loss

NUM_LAYERS, NUM_HEADS = 4, 6
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def family(reference: Reference) -> ModelFamily:
    """The toy with the row that the published code adds to the head for [PAD]: softmax sees it."""
    loaded = load_family(MODEL_FILE)
    rows = cast("Any", loaded.lm_head).weight
    padded = nn.Linear(rows.shape[1], len(rows) + 1, bias=False).requires_grad_(False)
    padded.weight.copy_(torch.cat([rows, reference.tensor("pad_row_lm_head")[None]]))
    loaded.lm_head = padded  # type: ignore[misc]
    return loaded


@pytest.fixture(scope="module")
def batch(reference: Reference, family: ModelFamily) -> Batch:
    """The three clips with their answers, from the published code's own audio embeddings of the batch."""
    sequences, positions, targets = [], [], []
    for text, audio in zip(
        reference.facts["train_forward"]["target_text"], reference.tensor("batch.speech_embeds"), strict=True
    ):
        prompt, ids = family.embed_prompt([audio]), family.encode_text(text)
        answer = family.decoder.get_input_embeddings()(torch.tensor(ids))
        sequences.append(torch.cat([prompt, answer]).detach())
        positions.append(torch.arange(len(prompt) - 1, len(sequences[-1])))
        targets += [*ids, END]
    return Batch(
        inputs_embeds=pad_sequence(sequences, batch_first=True),
        rows=torch.cat([torch.full_like(where, row) for row, where in enumerate(positions)]),
        positions=torch.cat(positions),
        targets=torch.tensor(targets),
    )


def of_heads(tensor: Tensor) -> Tensor:
    """[..., num_layers * (num_heads + 1)] without the column of the feed-forward: [..., layers, heads]."""
    return tensor.unflatten(-1, (NUM_LAYERS, NUM_HEADS + 1))[..., :NUM_HEADS]


@pytest.mark.parametrize("case", ["sigmoid", "gumbel_hard_tau4", "gumbel_hard_tau0.05"])
def test_loss_and_gradient(reference: Reference, family: ModelFamily, batch: Batch, case: str) -> None:
    facts = reference.facts["train_forward"][case]
    logits = of_heads(torch.tensor(reference.facts["mask_logits"])).clone().requires_grad_()
    noise = of_heads(reference.tensor(f"train.{case}.noise"))
    if case == "sigmoid":
        gate = torch.sigmoid(logits)[:, None].expand(-1, batch.size, -1)
    else:
        gate = straight_through(logits, noise.transpose(0, 1), facts["tau"])
    used = of_heads(reference.tensor(f"train.{case}.w_used")).transpose(0, 1)
    torch.testing.assert_close(gate, used)

    loss = answer_loss(family, batch, gate).reduced("token_mean")
    sparsity = facts["norm_lambda"] * gate.sum(dim=(0, 2)).mean()
    (loss + sparsity).backward()
    expected = facts["loss_incl_norm"] - facts["norm_lambda"] * facts["normalizer"]
    assert loss.item() == pytest.approx(expected, abs=TOLERANCE)
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad, of_heads(reference.tensor(f"train.{case}.grad")), atol=TOLERANCE, rtol=0
    )
