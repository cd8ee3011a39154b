"""What loading takes of the host's memory: ``python -m tests.loading_memory DTYPE QUANTIZE FOLDER ...``.

Prints a JSON object a folder: `weights`, bytes of the loaded weights, and `beyond`, by how many bytes the
process's own memory (files that are only mapped do not count) exceeded at its peak what it held afterwards.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lalm.families import load_family


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """A list of how much memory the process had, every millisecond."""
    seen, stop = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            seen.append(anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def main() -> None:
    dtype, quantize, *folders = sys.argv[1:]
    for folder in folders:
        gc.collect()
        with watched() as seen:
            family = load_family(folder, dtype=dtype, quantize=quantize if quantize != "none" else None)
        beyond = max(seen) - anonymous_bytes()
        weights = sum(weight.nbytes for weight in family.model.parameters())
        print(json.dumps({"weights": weights, "beyond": beyond}), flush=True)
        del family


if __name__ == "__main__":
    main()
