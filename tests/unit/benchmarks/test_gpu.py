from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_decode import DecodeBatch, random_embeddings, weight_bytes_per_step
from benchmarks.gpu_training import training_step
from benchmarks.random_qwen2_audio import SMALL, random_family
from benchmarks.timing import interleaved
from lalm.family import ModelFamily
from service.inference.decode_graphs import Capture
from tests.engine_support import capture_by_running_again
from training.generation import generate


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return random_family(SMALL, torch.device("cpu"), torch.float32)


def test_the_small_run_measures_every_part_and_ends_with_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = gpu.main(["--small", "--out", str(tmp_path / "gpu.json")])
    assert (
        json.loads((tmp_path / "gpu.json").read_text())["decode"]["floor_ms"] == figures["decode"]["floor_ms"]
    )
    assert set(figures["decode"]["batches"]) == {1, 4}
    assert set(figures["masks"]) == {"off", "one", "mixed"}
    assert figures["training"]["step_ms"] > 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = lines[lines.index("| what | figure | against | ratio |") + 2 :]
    assert len(rows) == 2 + 2 * 2 + 3 + 1 + 1
    assert all(row.startswith("|") for row in rows)


def test_the_weights_of_a_step_are_all_but_the_embeddings(family: ModelFamily) -> None:
    layer = 4 * (128 * 128) + 3 * 128 + 3 * (128 * 256) + 2 * 128  # attention, biases of q, k, v; MLP; norms
    assert weight_bytes_per_step(family) == 4 * (2 * layer + 128 + 128 * 1000)


@pytest.mark.parametrize(
    ("packed", "capture"), [(True, None), (False, None), (False, capture_by_running_again)]
)
def test_the_measured_steps_are_real_answers(
    family: ModelFamily, packed: bool, capture: Capture | None
) -> None:
    """What is timed gives the tokens of plain generate."""
    masks = [gpu.random_mask(family, 0), None, gpu.random_mask(family, 1)]
    decode = DecodeBatch(family, masks, prompt_tokens=9, max_steps=6, packed=packed, capture=capture)
    assert decode.is_captured is (capture is not None)
    decode.steps(5)
    for row, head_mask in zip(decode._rows, masks, strict=True):
        prompt = family.embed_prompt([random_embeddings(family, 9, row.id)])
        (expected,) = generate(family, [prompt], head_mask=head_mask, max_new_tokens=6)
        assert row.output_ids == expected


def test_a_training_step_moves_the_logits_and_no_weight(family: ModelFamily) -> None:
    before = [weight.clone() for weight in family.decoder.parameters()]
    step = training_step(family, batch_size=2, prompt_tokens=5, answer_tokens=3)
    (logits,) = (
        cell.cell_contents
        for cell in step.__closure__ or ()
        if isinstance(cell.cell_contents, torch.nn.Module)
    )
    start = logits.logits.detach().clone()
    step()
    assert not torch.equal(start, logits.logits)
    assert all(torch.equal(a, b) for a, b in zip(before, family.decoder.parameters(), strict=True))


def test_calls_take_turns() -> None:
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}  # type: ignore[misc]
    times = interleaved(calls, torch.device("cpu"), rounds=2)
    assert "".join(made) == "ab" + "ab" + "ba"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
