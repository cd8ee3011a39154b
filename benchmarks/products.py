"""Products of the embedded model's sizes in float32, bfloat16 and int8: what lower precision would bring.

    python -m benchmarks.products                   a few seconds; docs/engine.md says what it found

int8 is torch's dynamic quantisation: weights stored as int8, inputs quantised row by row in every call. The
three take turns. Positions: 1 is a decode step of one row, 5 one of several, 40 a prompt, 256 a long one, or
the encoder.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.machine import describe_line
from benchmarks.report import table
from benchmarks.timing import interleaved, median_ms

SIZES = ((256, 768), (256, 512), (512, 256))  # inputs and outputs of layers of the decoder
POSITIONS = (1, 5, 40, 256)


def main() -> None:
    """Measure and print a table of medians in microseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    print(describe_line(), end="\n\n")
    rows = []
    for num_inputs, num_outputs in SIZES:
        for positions in POSITIONS:
            calls = _calls(num_inputs, num_outputs, positions)
            with torch.inference_mode():
                times = interleaved(calls, torch.device("cpu"), options.repeats, warm_up=20)
            medians = [f"{1e3 * median_ms(of_call):.0f}" for of_call in times.values()]
            rows.append((f"{num_inputs} x {num_outputs}", str(positions), *medians))
    print(*table(("weight", "positions", "float32", "bfloat16", "int8"), rows), sep="\n")


def _calls(num_inputs: int, num_outputs: int, positions: int) -> dict[str, Callable[[], object]]:
    linear = nn.Linear(num_inputs, num_outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to torchao one day
        quantised = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            nn.Sequential(linear), {nn.Linear}, torch.qint8
        )
    half = nn.Linear(num_inputs, num_outputs, dtype=torch.bfloat16)
    inputs = torch.randn(positions, num_inputs)
    return {
        "float32": partial(linear, inputs),
        "bfloat16": partial(half, inputs.bfloat16()),
        "int8": partial(quantised, inputs),
    }


if __name__ == "__main__":
    main()
