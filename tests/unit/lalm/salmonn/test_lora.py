"""LoRA of a SALMONN: merged into the decoder's weights, and what rounding makes of that."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lalm.errors import ModelError
from lalm.families import load_family
from lalm.families.model_file import ModelFile
from lalm.families.placement import Placement
from lalm.families.salmonn.decoder import add_lora, load_decoder, load_vicuna
from lalm.families.salmonn.parts import open_parts
from tests.salmonn_toy import DATA, MODEL_FILE


def vicuna_plain_adapted_and_merged(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    parts, placement = open_parts(ModelFile.load(MODEL_FILE)), Placement(torch.device("cpu"), dtype)
    plain, adapted = (load_vicuna(parts, placement) for _ in range(2))
    return plain, add_lora(adapted, parts), load_decoder(parts, placement)


@torch.no_grad()
def logits(llama: Any) -> Tensor:
    """float32 [8, 16, vocab] of random inputs."""
    inputs = torch.randn(8, 16, 96, generator=torch.Generator().manual_seed(0))
    found: Tensor = llama(inputs_embeds=inputs.to(llama.dtype)).logits
    return found.float()


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of `expected`."""
    return float((found - expected).norm() / expected.norm())


def test_lora_merged_is_lora_beside_the_weights() -> None:
    plain, adapted, merged = vicuna_plain_adapted_and_merged(torch.float32)
    torch.testing.assert_close(logits(merged), logits(adapted), atol=2e-4, rtol=0)
    assert (logits(merged) - logits(plain)).abs().max() > 1


def test_lora_merged_in_half_precision_is_as_near_as_rounding_allows() -> None:
    """Measured in steps of float16 (2**-10): merged 2.3 from float32, unmerged 2.2, from one another 2.3."""
    plain, adapted, merged = vicuna_plain_adapted_and_merged(torch.float16)
    _, exact, _ = vicuna_plain_adapted_and_merged(torch.float32)
    step = torch.finfo(torch.float16).eps
    beside, expected = logits(adapted), logits(exact)
    assert distance(logits(merged), beside) < 4 * step
    assert distance(logits(merged), expected) < 1.5 * distance(beside, expected)
    assert distance(logits(plain), beside) > 500 * step, "what is left out is seen"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merged_weights_are_rounded_once(dtype: torch.dtype) -> None:
    _, adapted, merged = vicuna_plain_adapted_and_merged(dtype)
    num_weights = num_other = 0
    for layer, kind in itertools.product(range(4), ("q_proj", "v_proj")):
        name = f"model.layers.{layer}.self_attn.{kind}"
        found, lora = merged.get_submodule(name).weight, adapted.base_model.model.get_submodule(name)
        factors = [lora.get_submodule(f"lora_{each}.default").weight.double() for each in "BA"]
        exact = lora.base_layer.weight.double() + 32 / 8 * factors[0] @ factors[1]
        num_weights += found.numel()
        num_other += int((found != exact.to(dtype)).sum())
    # float32 and float64 fall on two sides of a tie; rounding the update before it is added changes 28 of 100
    assert num_other < 1e-3 * num_weights


def test_lora_beyond_the_range_of_half_precision_is_refused(tmp_path: Path) -> None:
    parts = {"vicuna": "llama", "whisper": "whisper", "beats": "beats.pt", "salmonn": "salmonn_v1.pth"}
    keys: dict[str, Any] = {name: str(DATA / part) for name, part in parts.items()}
    keys |= {"family": "salmonn", "qformer_heads": 4, "lora_alpha": 10**8}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(keys))
    with pytest.raises(ModelError, match=r"beyond the range of torch\.float16"):
        load_family(path, dtype="float16")
