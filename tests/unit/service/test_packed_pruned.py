"""The packed pass over a decoder without its silenced heads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from lalm import tiny
from lalm.audio import AudioLimits, decode_audio
from lalm.families import load_family
from lalm.family import AudioFeatures, ModelFamily
from lalm.head_gate import gate_tensor
from lalm.head_mask import HeadMask, MaskFile
from lalm.pruned import compile_task, prune_checkpoint
from lalm.pruned_attention import head_layouts
from service.inference.chunk import Chunk
from service.inference.engine import EngineRequest
from service.inference.head_slices import HeadSlices
from service.inference.kv_cache import KvCache
from service.inference.model_runner import ModelRunner
from service.inference.packed import PackedDecoder
from service.inference.packed_check import can_pack
from tests.engine_support import make_request, make_row, random_mask, reference, running_engine
from tests.spoken_samples import SPOKEN

REPOSITORY = Path(__file__).resolve().parents[3]
SHIPPED = sorted((REPOSITORY / "masks" / tiny.NAME).glob("*.json"))
# layers of the toy model: no head at all; one key-value head and not the other; groups of unequal size
RAGGED = HeadMask.from_strings(["00000000", "00000110", "01110100"])
SILENT_LAST = HeadMask.from_strings(["10010111", "11110000", "00000000"])


@pytest.fixture(scope="module", params=[RAGGED, SILENT_LAST], ids=["ragged", "silent-last"])
def pruned(
    request: pytest.FixtureRequest, toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelFamily:
    out = tmp_path_factory.mktemp("pruned") / "out"
    prune_checkpoint(toy_checkpoint, request.param, out)
    return load_family(out)


@pytest.fixture(scope="module")
def tiny_family() -> ModelFamily:
    return load_family(tiny.CHECKPOINT)


@pytest.fixture(scope="module")
def sample_features(tiny_family: ModelFamily) -> list[AudioFeatures]:
    return [tiny_family.features(decode_audio(path.read_bytes(), AudioLimits())) for path in SPOKEN]


@torch.inference_mode()
@pytest.mark.parametrize("num_outputs", [1, 5])
def test_rows_under_any_head_mask_are_the_decoders(pruned: ModelFamily, num_outputs: int) -> None:
    """A prefill of five positions, and two decode steps of all rows together."""
    masks = [None, random_mask(pruned, 1), random_mask(pruned, 2), HeadMask(np.zeros((3, 8), dtype=bool))]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(len(masks), 7, pruned.decoder.config.hidden_size, generator=generator)
    cache = KvCache(3, len(masks), 8)
    cache.reserve(len(masks), 8)
    packed = PackedDecoder(pruned.decoder, cache, 8)
    pieces = []
    for start, length in ((0, 5), (5, 1), (6, 1)):
        count = min(length, num_outputs)
        chunks = [Chunk(slot, start, length, mask, num_outputs=count) for slot, mask in enumerate(masks)]
        outputs = packed(inputs[:, start : start + length].flatten(0, 1), chunks)
        pieces.append(outputs.view(len(masks), count, -1))
    found = torch.cat(pieces, dim=1)
    theirs = pruned.decoder(inputs_embeds=inputs, head_gate=gate_tensor(masks, 3, 8)).last_hidden_state
    torch.testing.assert_close(found, theirs[:, -found.shape[1] :], rtol=1e-3, atol=1e-4)


def test_the_engine_answers_packed_as_generate_does(pruned: ModelFamily) -> None:
    rows = [make_row(head_mask, n=12) for head_mask in (None, random_mask(pruned, 5), random_mask(pruned, 6))]
    request = make_request(pruned, 0.7, *rows)
    assert ModelRunner(pruned, 2, 64).packed
    with running_engine(pruned) as engine:
        answers = asyncio.run(engine.submit(request)).rows
    assert [answer.token_ids for answer in answers] == [reference(pruned, request, row) for row in rows]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_mask_gives_the_same_tokens_packed(
    path: Path, tiny_family: ModelFamily, sample_features: list[AudioFeatures], tmp_path: Path
) -> None:
    mask_file, out = MaskFile.load(path), tmp_path / "pruned"
    compile_task(tiny.CHECKPOINT, mask_file, out)
    compiled, kept = load_family(out), MaskFile.load(out / "masks" / path.name)
    assert can_pack(compiled)
    row, own = (make_row(each.head_mask, n=mask_file.task.max_new_tokens) for each in (mask_file, kept))
    requests = [EngineRequest(str(number), [clip], [own]) for number, clip in enumerate(sample_features[:3])]
    with running_engine(compiled) as engine:
        found = [asyncio.run(engine.submit(request)).rows[0].token_ids for request in requests]
    assert found == [reference(tiny_family, request, row) for request in requests]
    assert all(found)


def test_its_own_head_mask_takes_no_further_copy(toy_checkpoint: Path, tmp_path: Path) -> None:
    prune_checkpoint(toy_checkpoint, RAGGED, tmp_path / "out")
    decoder = load_family(tmp_path / "out").decoder
    slices = HeadSlices([layer.self_attn for layer in decoder.layers], head_layouts(decoder), 8)
    plain = slices.of(None)
    assert slices.of(RAGGED) is plain
    assert [part.num_q for part in plain] == [0, 2, 4]
    fewer = slices.of(HeadMask.from_strings(["11111111", "00000010", "00110000"]))
    assert [part.num_q for part in fewer] == [0, 1, 2]


def test_widths_that_are_not_those_of_the_heads_left_are_not_packed(
    toy_checkpoint: Path, tmp_path: Path
) -> None:
    prune_checkpoint(toy_checkpoint, RAGGED, tmp_path / "out")
    family = load_family(tmp_path / "out")
    assert can_pack(family)
    family.decoder.layers[2].self_attn.k_proj = torch.nn.Linear(64, 8)
    assert not can_pack(family)


def test_a_decoder_without_any_head_is_not_packed(toy_checkpoint: Path, tmp_path: Path) -> None:
    prune_checkpoint(toy_checkpoint, HeadMask(np.zeros((3, 8), dtype=bool)), tmp_path / "out")
    assert not can_pack(load_family(tmp_path / "out"))
