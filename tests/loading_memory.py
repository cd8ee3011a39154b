"""What loading takes of the host's memory: ``python -m tests.loading_memory DTYPE QUANTIZE PATH ...``.

The three may come again for more models. Prints a JSON object a model, in bytes: `weights` that were loaded;
`peak`, by how much the process's own memory (files that are only mapped do not count) grew at most; `beyond`,
how much of that it did not hold afterwards.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from benchmarks.machine import anonymous_bytes, peak_anonymous_memory
from lalm.families import load_family


def main() -> None:
    arguments = iter(sys.argv[1:])
    for dtype, quantize, path in zip(arguments, arguments, arguments, strict=True):
        gc.collect()
        before = anonymous_bytes()
        with peak_anonymous_memory() as peak:
            family: Any = load_family(path, dtype=dtype, quantize=quantize if quantize != "none" else None)
        beyond = peak() - (anonymous_bytes() - before)
        modules = [family.model, *([family.hearing] if hasattr(family, "hearing") else [])]
        weights = sum(weight.nbytes for module in modules for weight in module.parameters())
        print(json.dumps({"weights": weights, "peak": peak(), "beyond": beyond}), flush=True)
        del family, modules


if __name__ == "__main__":
    main()
