from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lalm.errors import ModelError
from lalm.head_gate import ATTENTION, gate_tensor, gating, install
from lalm.head_mask import HeadMask

NUM_LAYERS, NUM_HEADS, HIDDEN, VOCAB = 3, 8, 64, 50


def make_model(kind: str, num_kv_heads: int) -> PreTrainedModel:
    """A random language model with plain SDPA."""
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=num_kv_heads,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(1)
    return model_class._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)


@pytest.fixture(
    params=[("qwen2", 8), ("qwen2", 2), ("llama", 8), ("llama", 2)], ids=lambda p: f"{p[0]}-kv{p[1]}"
)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(*request.param)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Three rows, the middle one padded on the left."""
    torch.manual_seed(2)
    attention_mask = torch.ones(3, 11, dtype=torch.long)
    attention_mask[1, :4] = 0
    return {"inputs_embeds": torch.randn(3, 11, HIDDEN), "attention_mask": attention_mask}


def random_gate(batch: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (NUM_LAYERS, batch, NUM_HEADS), generator=generator).float()


@contextmanager
def o_proj_hooks(decoder: Any, gate: Tensor) -> Iterator[None]:
    """The independent way: multiply the input of every output projection."""
    with ExitStack() as stack:
        for index, layer in enumerate(decoder.layers):
            factors = gate[index].repeat_interleave(HIDDEN // NUM_HEADS, dim=1)[:, None, :]

            def multiply(_: nn.Module, args: tuple[Tensor], factors: Tensor = factors) -> tuple[Tensor]:
                return (args[0] * factors,)

            handle = layer.self_attn.o_proj.register_forward_pre_hook(multiply)
            stack.callback(handle.remove)
        yield


def hidden_states(decoder: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    return decoder(**inputs, **kwargs).last_hidden_state


def test_ones_and_none_are_the_plain_model_to_the_bit(
    model: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    plain = hidden_states(model.model, inputs)
    install(model.model)
    assert model.model.config._attn_implementation == ATTENTION
    ones = gate_tensor([None] * 3, NUM_LAYERS, NUM_HEADS)
    assert torch.equal(hidden_states(model.model, inputs, head_gate=ones), plain)
    assert torch.equal(hidden_states(model.model, inputs), plain)


def test_gate_equals_a_hook_on_every_output_projection_to_the_bit(
    model: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    gate = random_gate(3)
    plain = hidden_states(model.model, inputs)
    with o_proj_hooks(model.model, gate):
        expected = hidden_states(model.model, inputs)
    assert not torch.allclose(expected, plain)
    install(model.model)
    assert torch.equal(hidden_states(model.model, inputs, head_gate=gate), expected)


def test_a_decode_step_with_a_cache_is_gated_to_the_bit(model: PreTrainedModel) -> None:
    gate, ids = random_gate(2), torch.arange(14).reshape(2, 7)

    def last_step(**kwargs: Any) -> Tensor:
        cache = model.model(input_ids=ids[:, :6], use_cache=True, **kwargs).past_key_values
        return model.model(input_ids=ids[:, 6:], past_key_values=cache, **kwargs).last_hidden_state

    with o_proj_hooks(model.model, gate):
        expected = last_step()
    install(model.model)
    assert torch.equal(last_step(head_gate=gate), expected)


def test_a_neighbours_gate_changes_nothing_in_a_row(
    model: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    install(model.model)
    gate = random_gate(3)
    other = gate.clone()
    other[:, 1] = 1 - other[:, 1]
    before = hidden_states(model.model, inputs, head_gate=gate)
    after = hidden_states(model.model, inputs, head_gate=other)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_each_bit_silences_its_own_head(inputs: dict[str, Tensor]) -> None:
    """Silencing (layer, head) equals removing the columns of that head from the layer's o_proj."""
    gated, cut = make_model("qwen2", 2), make_model("qwen2", 2)
    install(gated.model)
    gate = torch.ones(NUM_LAYERS, 3, NUM_HEADS)
    gate[1, :, 5] = 0
    head_dim = HIDDEN // NUM_HEADS
    cut.model.layers[1].self_attn.o_proj.weight[:, 5 * head_dim : 6 * head_dim] = 0
    found = hidden_states(gated.model, inputs, head_gate=gate)
    torch.testing.assert_close(found, hidden_states(cut.model, inputs), rtol=1e-5, atol=1e-5)


def test_gradients_reach_relaxed_gates(inputs: dict[str, Tensor]) -> None:
    model = make_model("qwen2", 2)
    install(model.model)
    gate = torch.full((NUM_LAYERS, 3, NUM_HEADS), 0.7, requires_grad=True)
    hidden_states(model.model, inputs, head_gate=gate)[0].square().sum().backward()
    assert gate.grad is not None
    assert bool((gate.grad[:, 0] != 0).all())
    assert bool((gate.grad[:, 1:] == 0).all()), "row 0's loss depends on row 0's gate only"


def test_the_gradient_is_the_derivative() -> None:
    model = make_model("llama", 2).double()
    install(model.model)
    inputs_embeds = torch.randn(1, 4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def outputs(gate: Tensor) -> Tensor:
        return model.model(inputs_embeds=inputs_embeds, head_gate=gate).last_hidden_state[..., :4].sum(dim=1)

    gate = torch.full((NUM_LAYERS, 1, NUM_HEADS), 0.6, dtype=torch.float64, requires_grad=True)
    # the norms of the model compute in float32, hence the wide step
    assert torch.autograd.gradcheck(outputs, (gate,), eps=1e-3, atol=1e-3, rtol=1e-2)


def test_a_float32_gate_acts_in_a_bfloat16_decoder(inputs: dict[str, Tensor]) -> None:
    model = make_model("qwen2", 2).to(torch.bfloat16)
    install(model.model)
    inputs["inputs_embeds"] = inputs["inputs_embeds"].to(torch.bfloat16)
    found = hidden_states(model.model, inputs, head_gate=random_gate(3))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, hidden_states(model.model, inputs, head_gate=random_gate(3).to(torch.bfloat16)))


@pytest.mark.parametrize("num_beams", [1, 2])
def test_gating_acts_in_generate(num_beams: int) -> None:
    model, gate, ids = make_model("qwen2", 2), random_gate(2), torch.arange(1, 13).reshape(2, 6)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": num_beams}
    with o_proj_hooks(model.model, gate.repeat_interleave(num_beams, dim=1)):
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    install(model.model)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    with gating(model.model, gate):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


def test_gating_ends_with_its_block_also_after_an_error(inputs: dict[str, Tensor]) -> None:
    model = make_model("qwen2", 2)
    install(model.model)
    plain = hidden_states(model.model, inputs)
    with pytest.raises(RuntimeError, match="inside"), gating(model.model, random_gate(3)):  # noqa: PT012
        assert not torch.equal(hidden_states(model.model, inputs), plain)
        raise RuntimeError("inside")
    assert torch.equal(hidden_states(model.model, inputs), plain)
    with gating(model.model, None):
        assert torch.equal(hidden_states(model.model, inputs), plain)


@pytest.mark.parametrize(
    "shape", [(NUM_LAYERS, 2, NUM_HEADS), (NUM_LAYERS - 1, 3, NUM_HEADS), (NUM_LAYERS, 3, 1), (3, NUM_HEADS)]
)
def test_a_gate_of_another_shape_is_refused(shape: tuple[int, ...], inputs: dict[str, Tensor]) -> None:
    model = make_model("qwen2", 2)
    install(model.model)
    with pytest.raises(ValueError, match=r"needs \[num_layers, batch, num_heads\] = \(3, 3, 8\)"):
        hidden_states(model.model, inputs, head_gate=torch.ones(shape))


def test_gating_refuses_a_batch_that_is_no_multiple(inputs: dict[str, Tensor]) -> None:
    model = make_model("qwen2", 2)
    install(model.model)
    with gating(model.model, random_gate(2)), pytest.raises(ValueError, match="2 rows, the batch has 3"):
        hidden_states(model.model, inputs)


def test_a_decoder_without_the_attention_interface_is_refused() -> None:
    decoder = BloomModel(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2))
    with pytest.raises(ModelError, match="BloomModel cannot be gated"):
        install(decoder)


def test_a_decoder_with_a_layer_that_drops_the_gate_is_refused() -> None:
    decoder: Any = make_model("qwen2", 2).model
    attention = decoder.layers[1].self_attn
    forward = attention.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("head_gate")
        return forward(*args, **kwargs)

    attention.forward = forgetful
    with pytest.raises(ModelError, match=r"of 3 layers a gate reaches \[0, 2\]"):
        install(decoder)


def test_gate_tensor_puts_each_head_mask_into_its_row() -> None:
    rng = np.random.default_rng(0)
    first = HeadMask.random(10, rng, (NUM_LAYERS, NUM_HEADS))
    last = HeadMask.random(3, rng, (NUM_LAYERS, NUM_HEADS))
    gate = gate_tensor([first, None, last], NUM_LAYERS, NUM_HEADS, "cpu", torch.bfloat16)
    assert gate.shape == (NUM_LAYERS, 3, NUM_HEADS)
    assert gate.dtype == torch.bfloat16
    assert np.array_equal(gate[:, 0].float().numpy(), first.heads)
    assert bool((gate[:, 1] == 1).all())
    assert np.array_equal(gate[:, 2].float().numpy(), last.heads)


def test_gate_tensor_refuses_a_head_mask_of_another_model() -> None:
    with pytest.raises(ValueError, match="row 1 is 2 x 4, the decoder has 3 layers x 8 heads"):
        gate_tensor([None, HeadMask.ones(2, 4)], NUM_LAYERS, NUM_HEADS)
