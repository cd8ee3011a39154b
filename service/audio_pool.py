"""The threads that decode audio and compute features, each on one CPU: the engine's threads have the others.

torch gives every thread that computes in parallel OpenMP threads of its own. Once a process has more of those
than CPUs, those that wait for each other go to sleep instead of spinning, and an operator of 40 µs waits for
50 more: because a worker computed in parallel once, the engine would take up to twice as long ever after.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from threadpoolctl import threadpool_limits


def audio_pool(num_threads: int) -> ThreadPoolExecutor:
    """An executor of threads that compute alone."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="audio", initializer=compute_alone)


def compute_alone() -> None:
    """Have torch compute in this thread alone, from now on; it does as before in all others."""
    import torch  # an import of seconds, which the start of the service does not wait for

    torch.get_num_threads()  # when a thread first uses it, torch sets what is set below
    threadpool_limits(limits=1, user_api="openmp")
    # MKL, where torch has it, has a number of its own. threadpoolctl would set that of all threads, and does
    # not see an MKL that is a part of torch.
    for library in (Path(torch.__file__).parent / "lib").glob("*torch_cpu.*"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local(1)
