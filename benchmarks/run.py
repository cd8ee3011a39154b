"""The benchmark: `make bench`, or `python -m benchmarks.run --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.client import run_jobs
from benchmarks.jobs import REPOSITORY, SAMPLES, load_recordings, load_tasks, mixed_jobs
from benchmarks.peers.generate_peer import GeneratePeer
from benchmarks.peers.litserve_peer import LitServePeer
from benchmarks.peers.peer import Peer, PeerError
from benchmarks.peers.process import START_TIMEOUT_S
from benchmarks.peers.service_peer import ServicePeer
from benchmarks.peers.transformers_serve_peer import TransformersServePeer
from benchmarks.plots import draw
from benchmarks.report import render
from benchmarks.truth import compute_truth
from benchmarks.workloads import QUICK, Sizes, Workloads
from lalm import tiny

PEERS: Mapping[str, Callable[[Path, Path], Peer]] = {
    "ahamask": ServicePeer,
    "generate": GeneratePeer,
    "compiled": lambda checkpoint, logs: GeneratePeer(checkpoint, logs, compiled=True),
    "litserve": LitServePeer,
    "transformers-serve": TransformersServePeer,
}
WORKLOADS = ("single", "concurrent", "tasks", "batches")
_EMPTY: dict[str, Any] = {"peers": {}, "workloads": {}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workloads, merge them into results.json, write results.md and the figures."""
    options = _parser().parse_args(arguments)
    results = asyncio.run(_measure(options))
    out: Path = options.out
    merged = merge(
        json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else _EMPTY, results
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(render(merged), encoding="utf-8")
    draw(merged, out)
    print(render(merged))
    return 0


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`: workloads and peers that were run again are replaced, the others stay.

    A peer's peak memory is the largest of both.
    """
    peers = {**old["peers"], **new["peers"]}
    for key in old["peers"].keys() & new["peers"].keys():
        peaks = [part["peers"][key].get("peak_rss_mb") for part in (old, new)]
        if peak := max((peak for peak in peaks if peak is not None), default=None):
            peers[key] = {**peers[key], "peak_rss_mb": peak}
    return {"peers": peers, "workloads": {**old["workloads"], **new["workloads"]}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--workloads", default=",".join(WORKLOADS), type=_names(WORKLOADS), help="comma-separated"
    )
    parser.add_argument("--peers", default=",".join(PEERS), type=_names(tuple(PEERS)), help="comma-separated")
    parser.add_argument("--rounds", type=int, help="rounds of every workload (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of tasks and recordings")
    parser.add_argument(
        "--quick", action="store_true", help="a minute, to see that it works; the figures mean nothing"
    )
    parser.add_argument("--checkpoint", type=Path, default=tiny.CHECKPOINT)
    parser.add_argument("--masks", type=Path, default=REPOSITORY / "masks" / tiny.NAME)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    return parser


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}; known are {', '.join(known)}")
        return names

    return parse


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    described = machine.describe()
    tasks = load_tasks(options.masks, REPOSITORY / "training" / "recipes")
    recordings = load_recordings(SAMPLES)
    _say(f"reference texts: {len(recordings)} recordings x {len(tasks)} tasks")
    truth = compute_truth(options.checkpoint, recordings, tasks, SAMPLES)
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    workloads = Workloads(recordings, tasks, truth, sizes, options.seed)
    peers: list[Peer] = []
    about: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    try:
        for key in options.peers:
            peer = PEERS[key](options.checkpoint, options.out / "logs")
            about[key] = await _start(peer, peers, mixed_jobs(recordings, tasks, 1, options.seed), truth)
        for peer in peers:
            _say(f"warm-up: {peer.title}")
            await workloads.warm_up(peer)
        for name in options.workloads:
            start_s = time.perf_counter()
            cells = await getattr(workloads, name)(peers)
            measured[name] = {
                "machine": described,
                "rounds": sizes.rounds,
                "seed": options.seed,
                "cells": [cell.as_json() for cell in cells],
            }
            _say(f"{name}: {time.perf_counter() - start_s:.0f} s")
        for peer in peers:
            about[peer.key]["peak_rss_mb"] = round(machine.peak_rss_bytes(peer.pid) / 1e6)
    finally:
        for peer in peers:
            await peer.stop()
    return {"peers": about, "workloads": measured}


async def _start(peer: Peer, running: list[Peer], jobs: Any, truth: Any) -> dict[str, Any]:
    """Start a peer and have one request answered; what there is to say about it."""
    start_s = time.perf_counter()
    try:
        await peer.start()
    except PeerError as error:
        _say(f"{peer.title}: left out: {error}")
        return {"title": peer.title, "skipped": str(error)}
    running.append(peer)
    (record,), _ = await run_jobs(peer, jobs, 1, truth, timeout_s=START_TIMEOUT_S)
    cold_start_s = time.perf_counter() - start_s
    if record.error is not None:
        await peer.stop()
        running.remove(peer)
        _say(f"{peer.title}: left out: {record.error}")
        return {"title": peer.title, "skipped": record.error}
    _say(f"{peer.title}: first answer after {cold_start_s:.1f} s")
    return {"title": peer.title, "cold_start_s": round(cold_start_s, 2)}


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
