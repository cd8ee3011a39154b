"""One head computed for a group of copies: the same function, gradients to every gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from lalm import head_gate
from lalm.copied_heads import merge_copied_heads

NUM_LAYERS, NUM_KV_HEADS, PARTS, DIM, HIDDEN = 2, 2, 4, 8, 24
NUM_HEADS = NUM_KV_HEADS * PARTS


def copied_decoder() -> Any:
    """A decoder whose query heads are copies in groups, each with two output channels of its own."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=11,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=DIM,
    )
    decoder = Qwen2Model(config).eval().requires_grad_(False)
    kept = torch.eye(PARTS).repeat_interleave(DIM // PARTS, dim=1)
    for layer in decoder.layers:
        query, output = layer.self_attn.q_proj, layer.self_attn.o_proj
        for tensor in (query.weight, query.bias.normal_()):
            heads = tensor.view(NUM_KV_HEADS, PARTS, -1)
            heads[:] = heads[:, :1].clone()
        columns = output.weight.view(HIDDEN, NUM_KV_HEADS, PARTS, DIM)
        columns *= kept
    head_gate.install(decoder)
    return decoder


def run(decoder: Any) -> tuple[Tensor, Tensor]:
    """Hidden states under a gate that is partly off, and the gate's gradient."""
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(3, 7, HIDDEN, generator=generator)
    gate = (torch.rand(NUM_LAYERS, 3, NUM_HEADS, generator=generator) > 0.3).float().requires_grad_()
    hidden = decoder(inputs_embeds=embeds, use_cache=False, head_gate=gate).last_hidden_state
    hidden.square().mean().backward()
    assert gate.grad is not None
    return hidden.detach(), gate.grad


def test_the_function_and_the_gradient_of_every_gate_stay() -> None:
    decoder = copied_decoder()
    before = run(decoder)
    assert before[1].count_nonzero() == before[1].numel()
    assert merge_copied_heads(decoder)
    assert decoder.layers[0].self_attn.q_proj.weight.shape == (NUM_KV_HEADS * DIM, HIDDEN)
    torch.testing.assert_close(run(decoder), before, atol=1e-5, rtol=1e-4)
    assert not merge_copied_heads(decoder)


def test_with_a_cache_it_is_the_same() -> None:
    decoder = copied_decoder()
    embeds = torch.randn(1, 6, HIDDEN)
    whole = decoder(inputs_embeds=embeds).last_hidden_state
    merge_copied_heads(decoder)
    first = decoder(inputs_embeds=embeds[:, :4], use_cache=True)
    rest = decoder(inputs_embeds=embeds[:, 4:], cache=first.cache, use_cache=True)
    torch.testing.assert_close(rest.last_hidden_state, whole[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("projection", ["q_proj", "o_proj"])
def test_other_heads_are_left_as_they_are(projection: str) -> None:
    decoder = copied_decoder()
    before = run(decoder)
    with torch.no_grad():
        getattr(decoder.layers[1].self_attn, projection).weight[2, 3] += 1
    changed = run(decoder)
    assert not torch.equal(changed[0], before[0])
    assert not merge_copied_heads(decoder)
    torch.testing.assert_close(run(decoder), changed)


def test_what_has_no_groups_is_left_as_it_is() -> None:
    assert not merge_copied_heads(torch.nn.Linear(2, 2))
