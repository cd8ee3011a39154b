"""Memory and speed of mask training, beside the paper's loop as it is written down (`plain_training`).

    python -m benchmarks.training training/recipes/gr.toml --out training.json      needs `make corpus`

Each runs in a process of its own, on the recipe's data, one after the other: an epoch whose losses are
compared, then another one. Memory is the peak beyond the loaded model: of the process on a CPU, of the
allocator on a GPU. Seconds are those of the processor on a CPU, of the clock on a GPU, which must be idle.
The embedded model's heads are copies in groups, of which training computes one each
(`lalm.copied_heads`); no other model gains by that, and `--as-stored` shows what remains without it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.machine import status_bytes
from benchmarks.plain_training import plain_decoder, plain_step
from lalm.families import load_family
from lalm.family import ModelFamily
from training.batches import AnswerData
from training.checkpoint import TrainState
from training.config import TrainConfig, load_config
from training.data import load_data
from training.plan import BatchPlan
from training.processes import ALONE
from training.step import Stepper
from training.train import fresh_state, load_configured_family

MIB = 2**20
KINDS = ("ours", "plain")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure both, print a table, and return (and with --out write) the figures."""
    options = _options(arguments)
    config = _config(options)
    if options.only is not None:
        torch.set_num_threads(options.threads)
        merged = options.only == "ours" and not options.as_stored
        family = load_configured_family(config) if merged else load_family(config.checkpoint)
        figures = measure(options.only, config, family)
        print(json.dumps(figures))
        return figures
    figures = {kind: _in_a_process(kind, sys.argv[1:] if arguments is None else arguments) for kind in KINDS}
    ours, plain = figures["ours"], figures["plain"]
    losses = zip(ours["losses"], plain["losses"], strict=True)
    figures["ratios"] = {
        "first epoch, times as fast": plain["first_epoch_s"] / ours["first_epoch_s"],
        "later epoch, times as fast": plain["later_epoch_s"] / ours["later_epoch_s"],
        "memory, share of plain": ours["peak_mib"] / plain["peak_mib"],
        "largest relative difference of a loss": max(abs(one / other - 1) for one, other in losses),
    }
    _print(figures)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def measure(kind: str, config: TrainConfig, family: ModelFamily) -> dict[str, Any]:
    """Two epochs of "ours" or "plain": losses of the first, seconds of each, peak MiB beyond the model."""
    run = {"ours": _ours, "plain": _plain}[kind]
    with _peak_of(family.device) as peak_bytes, Progress(disable=True) as progress:
        clock = time.process_time if family.device.type == "cpu" else time.perf_counter
        start_s = clock()
        times_s, losses, per_epoch = [start_s], [], 0
        for loss, per_epoch in run(config, family, progress):
            losses.append(loss)
            if len(losses) % per_epoch == 0:
                times_s.append(clock())
        peak = peak_bytes()
    return {
        "device": str(family.device),
        "num_steps": len(losses),
        "losses": losses[:per_epoch],
        "first_epoch_s": times_s[1] - times_s[0],
        "later_epoch_s": times_s[2] - times_s[1],
        "peak_mib": peak / MIB,
    }


def _ours(config: TrainConfig, family: ModelFamily, progress: Progress) -> Iterator[tuple[float, int]]:
    """The loss of each step of two epochs, and the number of steps of one; audio is encoded before them."""
    data, plan, state = _begin(config, family, progress)
    stepper = Stepper(config, family, data, plan, ALONE)
    with closing(stepper.batches(0)) as batches:
        for state.step in range(2 * plan.batches_per_epoch):
            yield stepper.step(state, batches)["loss"], plan.batches_per_epoch


def _plain(config: TrainConfig, family: ModelFamily, progress: Progress) -> Iterator[tuple[float, int]]:
    """The same by the plain loop, which encodes audio in each step."""
    alone = config.data.model_copy(update={"cache_folder": None, "cache_audio": False})
    config = config.model_copy(update={"data": alone})
    data, plan, state = _begin(config, family, progress)
    with plain_decoder(family.decoder) as outputs:
        for state.step in range(2 * plan.batches_per_epoch):
            loss = plain_step(config, family, tuple(data.examples), plan, state, outputs)
            yield loss, plan.batches_per_epoch


def _begin(
    config: TrainConfig, family: ModelFamily, progress: Progress
) -> tuple[AnswerData, BatchPlan, TrainState]:
    data = load_data(config, family, ALONE, progress).train
    plan = BatchPlan(data.lengths(), config.optim.batch_size, config.run.seed)
    return data, plan, fresh_state(config, family)


@contextmanager
def _peak_of(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields what tells the peak of memory since now, in bytes, beyond what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the kernel forgets the peak so far
    before = _status_bytes("VmRSS")
    yield lambda: _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    """What Linux says of this process: VmRSS is what is resident now, VmHWM the most since the last reset."""
    size = status_bytes(os.getpid(), name)
    if size is None:
        raise RuntimeError(f"/proc/self/status has no {name}: the benchmark needs Linux")
    return size


def _in_a_process(kind: str, arguments: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.training", *arguments]
        done = subprocess.run(
            [*command, "--only", kind, "--cache", folder], stdout=subprocess.PIPE, text=True, check=True
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--examples", type=int, default=128, help="recordings of an epoch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the computation, on a CPU")
    parser.add_argument("--out", type=Path, help="write the figures here, JSON")
    parser.add_argument("--as-stored", action="store_true", help="copied heads are not merged")
    parser.add_argument("--only", choices=KINDS, help="measure one, in this process")
    parser.add_argument("--cache", type=Path, default=None, help="where audio embeddings are kept")
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace) -> TrainConfig:
    wanted = {
        "data.max_train_examples": options.examples,
        "data.max_valid_examples": 1,
        "run.device": options.device,
        "optim.steps": 10_000,  # more than are run, so that the schedule is the same whatever the epochs
    }
    if options.cache is not None:
        wanted["data.cache_folder"] = str(options.cache)
    return load_config(options.recipe, wanted)


def _print(figures: dict[str, Any]) -> None:
    ours, plain = figures["ours"], figures["plain"]
    print("| | this package | the loop as written |\n|---|---|---|")
    for key, unit in (("first_epoch_s", "s"), ("later_epoch_s", "s"), ("peak_mib", "MiB")):
        name = key.rpartition("_")[0].replace("_", " ")
        print(f"| {name} | {ours[key]:.1f} {unit} | {plain[key]:.1f} {unit} |")
    for key, value in figures["ratios"].items():
        print(f"{key}: {value:.3g}")


if __name__ == "__main__":
    main()
