"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("torch", "transformers")
_WATCH_INTERVAL_S = 0.001


def describe() -> dict[str, Any]:
    """Processor, memory, system, versions; the load tells an idle machine from a busy one."""
    return {
        "processor": _processor(),
        "num_cpus": len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def describe_line() -> str:
    """The same in one line."""
    return ", ".join(f"{name} {value}" for name, value in describe().items())


def peak_rss_bytes(pid: int) -> int:
    """The peak memory of a process and its children, each on its own, added up.

    On Linux the kernel's own high-water mark; elsewhere what they have at this moment.
    """
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += status_bytes(process.pid, "VmHWM") or process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def peak_anonymous_memory() -> Iterator[Callable[[], int]]:
    """A function that tells by how many bytes `anonymous_bytes` has grown at most."""
    before = largest = anonymous_bytes()
    stop = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not stop.wait(_WATCH_INTERVAL_S):
            largest = max(largest, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: largest - before
    finally:
        stop.set()
        thread.join()


def anonymous_bytes() -> int:
    """Memory of this process that no file is mapped to; 0 where there is no Linux."""
    return status_bytes(os.getpid(), "RssAnon") or 0


def status_bytes(pid: int, name: str) -> int | None:
    """A size in Linux's status of a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        output = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()
