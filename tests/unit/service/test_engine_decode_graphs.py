"""Recorded decode steps, without a GPU: what a CUDA graph would run, and that it is what one can record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lalm.families import load_family
from lalm.family import ModelFamily
from service.inference.decode_graphs import Capture, DecodeGraphs, Step, capture_on_cuda
from service.inference.greedy import greedy
from service.inference.kv_cache import KvCache
from service.inference.model_runner import ModelRunner, PromptPart
from service.inference.padded import PaddedPass
from service.inference.sequence import Sequence, Times
from tests.engine_support import FamilyWith, capture_by_running_again, random_mask
from tests.toy import toy_waveform

NUM_SLOTS, NUM_POSITIONS = 6, 600


class Counting:
    """A capture that notes how often each of its steps is replayed."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, step: Step) -> Step:
        number, replay = len(self.replays), capture_by_running_again(step)
        self.replays.append(0)

        def count() -> Tensor:
            self.replays[number] += 1
            return replay()

        return count


def runner(family: Any, capture: Capture | None) -> ModelRunner:
    it = ModelRunner(family, NUM_SLOTS, NUM_POSITIONS - 1, packed=False, capture=capture)
    it.warm_up()
    return it


def prefilled(family: ModelFamily, it: ModelRunner, slots: Iterable[int]) -> list[Sequence]:
    """A row in each of `slots`, prompts of different lengths, behind its first token."""
    rows = []
    for slot in slots:
        audio = it.encode([family.features(toy_waveform(0.3 + slot, slot))])
        length = sum(map(len, family.prompt_segments(None, 1))) + len(audio[0])
        row = Sequence(slot, "t", "t", random_mask(family, slot), None, length, 30, Times(0.0), slot=slot)
        (first,) = it.prefill([PromptPart(row, audio, length)])
        row.num_prefilled = length
        row.output_ids += first.tokens
        rows.append(row)
    return rows


def decode(it: ModelRunner, rows: list[Sequence]) -> list[int]:
    tokens = [token for (token,) in it.decode(rows)]
    for row, token in zip(rows, tokens, strict=True):
        row.output_ids.append(token)
    return tokens


def test_recorded_steps_give_the_tokens_of_computed_ones(toy_family: ModelFamily) -> None:
    capture = Counting()
    theirs, ours = runner(toy_family, None), runner(toy_family, capture)
    assert len(capture.replays) == 4 * 3  # 1, 2, 4 and 6 slots; 256, 512 and 599 keys
    before = sum(capture.replays)
    expected_rows, rows = (prefilled(toy_family, it, [0, 2, 3, 5]) for it in (theirs, ours))
    # All rows, a few of them while the others stand still, and all of them again.
    for chosen in ([0, 1, 2, 3], [1, 3], [0], [1, 2], [0, 1, 2, 3], [0, 1, 2, 3]):
        expected = decode(theirs, [expected_rows[number] for number in chosen])
        assert decode(ours, [rows[number] for number in chosen]) == expected
    assert sum(capture.replays) == before + 6
    assert len({tuple(row.output_ids) for row in rows}) == len(rows)


def test_a_step_is_no_larger_than_it_has_to_be(toy_family: ModelFamily) -> None:
    capture = Counting()
    it = runner(toy_family, capture)
    (row,) = prefilled(toy_family, it, [0])
    before = list(capture.replays)
    decode(it, [row])
    replayed = [now - then for now, then in zip(capture.replays, before, strict=True)]
    assert replayed == [0] * 11 + [1]  # the largest is recorded first, one slot and 256 keys last


def test_the_last_position_is_no_sequences(toy_family: ModelFamily) -> None:
    positions = toy_family.decoder.config.max_position_embeddings
    assert runner(toy_family, capture_by_running_again).max_sequence_tokens == NUM_POSITIONS - 1
    roomy = ModelRunner(toy_family, 1, 10 * positions, packed=False, capture=capture_by_running_again)
    assert roomy.max_sequence_tokens == positions - 1
    assert ModelRunner(toy_family, 1, 10 * positions, packed=False).max_sequence_tokens == positions


def no_capture(step: Step) -> Step:
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong_capture(step: Step) -> Step:
    return lambda: step() + 1


@pytest.mark.parametrize("capture", [no_capture, wrong_capture])
def test_where_steps_cannot_be_recorded_they_are_computed(toy_family: ModelFamily, capture: Capture) -> None:
    theirs, ours = runner(toy_family, None), runner(toy_family, capture)
    expected_rows, rows = (prefilled(toy_family, it, [0, 1]) for it in (theirs, ours))
    for _ in range(3):
        assert decode(ours, rows) == decode(theirs, expected_rows)


class OnTheDeviceAlone(TorchDispatchMode):
    """Fails at what a CUDA graph cannot record: a tensor of the host, a value that the host reads, a shape
    that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert torch.Tag.data_dependent_output not in func.tags, f"{func} asks for a value"
        assert torch.Tag.dynamic_output_shape not in func.tags, f"{func} has a shape that depends on values"
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        others = [tensor for tensor in tensors if tensor.device.type != "meta"]
        assert not others, f"{func} touches a tensor of the host"
        self.num_operations += 1
        return output


def test_a_step_is_all_on_the_device(toy_checkpoint: Path) -> None:
    """On torch's meta device, whose tensors have no values."""
    device, loaded = torch.device("meta"), load_family(toy_checkpoint)
    decoder, lm_head = loaded.decoder.to(device), loaded.lm_head.to(device)
    family: Any = FamilyWith(loaded, decoder=decoder, lm_head=lm_head, device=device)
    cache = KvCache(family.identity.num_layers, NUM_SLOTS, NUM_POSITIONS)
    cache.reserve(NUM_SLOTS, NUM_POSITIONS)
    watched = []

    def capture(step: Step) -> Step:
        step()  # as `capture_on_cuda` does: the first one makes the cache
        with OnTheDeviceAlone() as watch:
            output = step()
        watched.append(watch.num_operations)
        return lambda: output

    graphs = DecodeGraphs(
        PaddedPass(family, cache, NUM_SLOTS),
        lambda hidden: greedy(lm_head(hidden)),
        NUM_SLOTS,
        NUM_POSITIONS,
        device,
    )
    with torch.inference_mode():
        assert not graphs.record(capture)  # there is nothing to compare
    assert len(watched) == 1
    assert watched[0] > 50


def test_the_watch_sees_what_cannot_be_recorded() -> None:
    numbers = torch.zeros(3, device="meta")
    for wrong, why in (
        (lambda: torch.tensor([1.0, 2.0]).to("meta"), "host"),
        (lambda: numbers.sum().item(), "value"),
        (lambda: numbers[numbers > 0], "shape"),
    ):
        with OnTheDeviceAlone(), pytest.raises(AssertionError, match=why):
            wrong()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_graphs_give_the_tokens_of_computed_steps(toy_checkpoint: Path) -> None:
    family = load_family(toy_checkpoint, device="cuda")
    theirs, ours = runner(family, None), runner(family, capture_on_cuda(family.device))
    assert ours.replays_decode_steps
    expected_rows, rows = (prefilled(family, it, [0, 2, 3, 5]) for it in (theirs, ours))
    for _ in range(20):
        assert decode(ours, rows) == decode(theirs, expected_rows)
