"""Wall time of device work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, to the end of its device work."""
    synchronize(device)
    start_s = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start_s


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call in every round; each round begins with another one."""
    names = list(calls)
    for _ in range(warm_up):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for offset in range(len(names)):
            name = names[(number + offset) % len(names)]
            times[name].append(seconds(calls[name], device))
    return times


def bandwidth_bytes_per_s(device: torch.device, num_bytes: int, rounds: int = 10) -> float:
    """Memory bandwidth, measured: the fastest of `rounds` reductions that read `num_bytes` once.

    num_bytes: far more than any cache holds.
    """
    data = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    calls: dict[str, Callable[[], object]] = {"read": data.sum, "copy": data.clone}
    times = interleaved(calls, device, rounds)
    read_s, copy_s = min(times["read"]), min(times["copy"])
    return max(data.nbytes / read_s, 2 * data.nbytes / copy_s)


def median_ms(times: list[float]) -> float:
    """Their median in milliseconds."""
    return 1e3 * median(times)
