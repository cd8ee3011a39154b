"""Products of the embedded model's sizes in float32, bfloat16 and int8: what lower precision would bring.

    python -m benchmarks.products                   a few seconds; the table of docs/engine.md

int8 is torch's dynamic quantisation: weights stored as int8, inputs quantised row by row in every call. The
three take turns. Positions: 1 is a decode step of one row, 5 one of several, 40 a prompt, 256 a long one, or
the encoder.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.machine import describe
from benchmarks.report import table

SIZES = ((256, 768), (256, 512), (512, 256))  # inputs and outputs of layers of the decoder
POSITIONS = (1, 5, 40, 256)


def main() -> None:
    """Measure and print a table of medians in microseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in describe().items()), end="\n\n")
    rows = []
    for num_inputs, num_outputs in SIZES:
        for positions in POSITIONS:
            calls = _calls(num_inputs, num_outputs, positions)
            times = [f"{each:.0f}" for each in _microseconds(calls, options.repeats)]
            rows.append((f"{num_inputs} x {num_outputs}", str(positions), *times))
    print(*table(("weight", "positions", "float32", "bfloat16", "int8"), rows), sep="\n")


def _calls(num_inputs: int, num_outputs: int, positions: int) -> list[Callable[[], Tensor]]:
    linear = nn.Linear(num_inputs, num_outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to torchao one day
        quantised = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            nn.Sequential(linear), {nn.Linear}, torch.qint8
        )
    half = nn.Linear(num_inputs, num_outputs, dtype=torch.bfloat16)
    inputs = torch.randn(positions, num_inputs)
    half_inputs = inputs.bfloat16()
    return [lambda: linear(inputs), lambda: half(half_inputs), lambda: quantised(inputs)]


@torch.inference_mode()
def _microseconds(calls: list[Callable[[], Tensor]], repeats: int) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeats + 20):
        for call, of_call in zip(calls, times, strict=True):
            start_s = time.perf_counter()
            call()
            if number >= 20:  # the first ones warm up
                of_call.append(1e6 * (time.perf_counter() - start_s))
    return [median(of_call) for of_call in times]


if __name__ == "__main__":
    main()
