"""How many threads torch starts for a thread that computes, told by the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Prints how many more threads there are after some steps than before, while the steps' own is still there.
SCRIPT = """
import os, sys, threading
import torch
from service.audio_pool import audio_pool, compute_alone

def compute():
    numbers = torch.randn(800, 800)
    numbers @ numbers      # MKL's threads, where torch has it
    (numbers + 1).exp()    # torch's own

def in_another_thread(step):
    computed, counted = threading.Event(), threading.Event()
    threading.Thread(target=lambda: (step(), computed.set(), counted.wait()), daemon=True).start()
    computed.wait()

pool = audio_pool(1)  # kept, or its thread would end while others are counted
steps = {
    "by itself": compute,
    "alone": lambda: (compute_alone(), compute()),
    "alone, then another": lambda: (compute_alone(), compute(), in_another_thread(compute)),
    "in the pool": lambda: pool.submit(compute).result(),
}[sys.argv[1]]
torch.set_num_threads(2)
before = len(os.listdir("/proc/self/task"))
in_another_thread(steps)
print(len(os.listdir("/proc/self/task")) - before - 1)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two CPUs",
)
@pytest.mark.parametrize(
    ("steps", "num_threads"),
    [
        ("by itself", 1),
        ("alone", 0),
        ("in the pool", 1),  # the pool's own
        ("alone, then another", 2),  # the other, and the one it starts
    ],
)
def test_a_thread_that_computes_alone_starts_no_other(steps: str, num_threads: int) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, steps], env=environment, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) == num_threads
