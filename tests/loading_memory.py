"""What loading takes of the host's memory: ``python -m tests.loading_memory DTYPE QUANTIZE FOLDER ...``.

Prints a JSON object a folder: `weights`, bytes of the loaded weights, and `beyond`, by how many bytes the
process's own memory (files that are only mapped do not count) exceeded at its peak what it held afterwards.
"""

from __future__ import annotations

import gc
import json
import sys

from benchmarks.machine import anonymous_bytes, peak_anonymous_memory
from lalm.families import load_family


def main() -> None:
    dtype, quantize, *folders = sys.argv[1:]
    for folder in folders:
        gc.collect()
        before = anonymous_bytes()
        with peak_anonymous_memory() as peak:
            family = load_family(folder, dtype=dtype, quantize=quantize if quantize != "none" else None)
        beyond = peak() - (anonymous_bytes() - before)
        weights = sum(weight.nbytes for weight in family.model.parameters())
        print(json.dumps({"weights": weights, "beyond": beyond}), flush=True)
        del family


if __name__ == "__main__":
    main()
