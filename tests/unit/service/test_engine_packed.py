"""The packed pass against transformers' own forward under the gate, position by position."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask
from lalm.pruned_attention import head_layouts
from service.inference.chunk import Chunk
from service.inference.head_slices import HeadSlices, LayerSlice
from service.inference.kv_cache import KvCache
from service.inference.model_runner import ModelRunner
from service.inference.packed import PackedDecoder, PackedPass
from service.inference.packed_check import can_pack
from tests.engine_support import FamilyWith, make_request, make_row, random_mask, running_engine
from tests.toy import write_toy_checkpoint

NUM_SLOTS, NUM_POSITIONS = 4, 40


def copy_queries(family: ModelFamily, *, own_channels: bool) -> None:
    """Heads that share a key-value head get one query; if asked, each has output channels of its own."""
    for layer in family.decoder.layers:
        attention = layer.self_attn
        parts, dim = attention.num_key_value_groups, attention.head_dim
        for weight in (attention.q_proj.weight, attention.q_proj.bias):
            heads = weight.data.view(-1, parts, dim, *weight.shape[1:])
            heads[:] = heads[:, :1].clone()
        if own_channels:
            owner = torch.arange(dim) // (dim // parts)
            columns = attention.o_proj.weight.data.view(len(attention.o_proj.weight), -1, parts, dim)
            columns *= owner == torch.arange(parts)[:, None]


@pytest.fixture(scope="module", params=["other heads", "equal queries", "copied heads"])
def family(request: pytest.FixtureRequest, toy_checkpoint: Path) -> ModelFamily:
    loaded = load_family(toy_checkpoint)
    if request.param != "other heads":
        copy_queries(loaded, own_channels=request.param == "copied heads")
    return loaded


def make_inputs(family: ModelFamily, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, family.decoder.config.hidden_size, generator=generator)


def make_cache(family: ModelFamily) -> KvCache:
    cache = KvCache(family.identity.num_layers, NUM_SLOTS, NUM_POSITIONS)
    cache.reserve(NUM_SLOTS, NUM_POSITIONS)
    return cache


@torch.inference_mode()
def expected(family: ModelFamily, inputs: Tensor, head_mask: HeadMask | None) -> Tensor:
    gate = gate_tensor([head_mask], family.identity.num_layers, family.identity.num_heads)
    output: Tensor = family.decoder(inputs_embeds=inputs[None], use_cache=False, head_gate=gate)[0][0]
    return output


@st.composite
def head_masks(draw: st.DrawFn) -> HeadMask | None:
    """Of 3 layers x 8 heads (4 a key-value head): none, all, whole layers and whole groups silent."""
    if draw(st.booleans()):
        return draw(st.sampled_from([None, HeadMask.ones(3, 8)]))
    layer = st.lists(st.booleans(), min_size=8, max_size=8)
    return HeadMask(np.array(draw(st.lists(layer, min_size=3, max_size=3))))


@settings(max_examples=40)
@given(
    masks=st.lists(head_masks(), min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    lengths=st.lists(st.integers(1, 12), min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_rows_in_any_pieces_and_company_are_the_decoders(
    family: ModelFamily,
    masks: list[HeadMask | None],
    lengths: list[int],
    pieces: list[int],
    seed: int,
) -> None:
    inputs = [make_inputs(family, length, seed + row) for row, length in enumerate(lengths)]
    packed = PackedDecoder(family.decoder, make_cache(family), NUM_POSITIONS)
    seen: list[list[Tensor]] = [[] for _ in lengths]
    done, turn = [0] * NUM_SLOTS, 0
    while done != lengths:
        chunks, parts = [], []
        for row, length in enumerate(lengths):
            size = min(pieces[(turn + row) % len(pieces)], length - done[row])
            if size:
                chunks.append(Chunk(row, done[row], size, masks[row], num_outputs=size))
                parts.append(inputs[row][done[row] : done[row] + size])
                done[row] += size
        with torch.inference_mode():
            outputs = packed(torch.cat(parts), chunks)
        for chunk, output in zip(chunks, outputs.split([chunk.length for chunk in chunks]), strict=True):
            seen[chunk.slot].append(output)
        turn += 1
    for row, parts in enumerate(seen):
        torch.testing.assert_close(
            torch.cat(parts), expected(family, inputs[row], masks[row]), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("slots", [(0, 1, 2, 3), (2, 0), (3, 0), (1,)], ids=str)
@pytest.mark.parametrize("num_masks", [1, 2, 4])
def test_a_decode_step_with_whole_or_sliced_weights_is_the_decoders(
    family: ModelFamily, num_masks: int, slots: tuple[int, ...]
) -> None:
    masks = [random_mask(family, slot % num_masks) for slot in range(NUM_SLOTS)]
    lengths = [9, 4, 12, 1]
    inputs = [make_inputs(family, length + 1, slot) for slot, length in enumerate(lengths)]
    forward = PackedPass(family.decoder, make_cache(family), NUM_POSITIONS)
    with torch.inference_mode():
        forward.prefill(
            [rows[:-1] for rows in inputs],
            [Chunk(slot, 0, lengths[slot], masks[slot]) for slot in range(NUM_SLOTS)],
        )
        outputs = forward.prefill(
            [inputs[slot][-1:] for slot in slots],
            [Chunk(slot, lengths[slot], 1, masks[slot]) for slot in slots],
        )
    for slot, output in zip(slots, outputs, strict=True):
        torch.testing.assert_close(
            output, expected(family, inputs[slot], masks[slot])[-1], rtol=1e-3, atol=1e-4
        )


def test_only_the_outputs_asked_for_come_back_in_the_order_of_the_chunks(family: ModelFamily) -> None:
    masks = [random_mask(family, 1), random_mask(family, 2), random_mask(family, 1)]
    inputs = [make_inputs(family, 6, row) for row in range(3)]
    counts = [1, 3, 0]
    forward = PackedPass(family.decoder, make_cache(family), NUM_POSITIONS)
    with torch.inference_mode():
        outputs = forward.prefill(
            inputs, [Chunk(row, 0, 6, masks[row], num_outputs=counts[row]) for row in range(3)]
        )
        none = forward.prefill(inputs[:1], [Chunk(0, 0, 6, masks[0], num_outputs=0)])
    assert none.shape[0] == 0
    wanted = [expected(family, inputs[row], masks[row])[6 - counts[row] :] for row in range(3)]
    torch.testing.assert_close(outputs, torch.cat(wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["equal queries", "copied heads"], indirect=True)
def test_equal_heads_are_computed_once(family: ModelFamily) -> None:
    attentions = [layer.self_attn for layer in family.decoder.layers]
    slices = HeadSlices(attentions, head_layouts(family.decoder), 8)
    heads = np.ones((3, 8), dtype=bool)
    heads[1, :4] = heads[2, 6] = False
    assert [(part.num_q, part.num_kv) for part in slices.of(None)] == [(2, 2)] * 3
    assert [(part.num_q, part.num_kv) for part in slices.of(HeadMask(heads))] == [(2, 2), (1, 1), (2, 2)]
    assert can_pack(family)


def test_slices_of_many_head_masks_stay_within_their_memory(toy_family: ModelFamily) -> None:
    attentions = [layer.self_attn for layer in toy_family.decoder.layers]
    layouts = head_layouts(toy_family.decoder)
    masks = [random_mask(toy_family, seed) for seed in range(5)]
    one = sum(part.num_bytes for part in HeadSlices(attentions, layouts, 8).of(masks[0]))
    slices = HeadSlices(attentions, layouts, 8, max_bytes=3 * one)
    first = slices.of(masks[0])
    for head_mask in masks[1:3]:
        slices.of(head_mask)
    assert slices.of(masks[0]) is first
    for head_mask in masks[3:]:
        slices.of(head_mask)
    assert slices.num_bytes <= 3 * one
    assert slices.of(masks[0]) is first  # the latest but two
    again = slices.of(masks[1])
    assert torch.equal(again[0].qkv, HeadSlices(attentions, layouts, 8).of(masks[1])[0].qkv)


def test_head_masks_that_are_expected_are_prepared(toy_family: ModelFamily) -> None:
    masks = [random_mask(toy_family, seed) for seed in range(3)]
    made: list[HeadMask | None] = []
    make = HeadSlices._slice

    def count(self: HeadSlices, *args: Any) -> LayerSlice:
        made.append(None)
        return make(self, *args)

    with patch.object(HeadSlices, "_slice", count):
        runner = ModelRunner(toy_family, 2, 64)
        runner.warm_up(masks)
        num_layers = toy_family.identity.num_layers
        assert len(made) == num_layers * (
            1 + 1 + len(masks)
        )  # the check's own, the plain model, each of them
        with running_engine(toy_family) as engine:
            made.clear()
            asyncio.run(engine.submit(make_request(toy_family, 0.5, make_row(masks[0], n=2))))
        assert len(made) == num_layers


def test_where_the_packed_pass_is_used(toy_family: ModelFamily, tmp_path: Path) -> None:
    assert ModelRunner(toy_family, 2, 64).packed
    assert not ModelRunner(toy_family, 2, 64, packed=False).packed
    assert not can_pack(FamilyWith(toy_family, dtype=torch.bfloat16))
    assert not can_pack(FamilyWith(toy_family, device=torch.device("meta")))

    family = load_family(write_toy_checkpoint(tmp_path / "toy"))
    assert can_pack(family)
    handle = family.decoder.layers[1].register_forward_hook(lambda _module, _args, output: 1.5 * output)
    assert not can_pack(family)  # its forward does more than the packed pass knows of
    handle.remove()
    family.decoder.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert not can_pack(family)
