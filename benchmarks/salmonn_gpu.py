"""SALMONN-13B's shape with random weights, served: load time, memory, decode speed, latency of requests.

    python -m benchmarks.salmonn_gpu --mask published-masks/asr_librispeech/checkpoint.pth --out salmonn.json
    python -m benchmarks.salmonn_gpu --small                      a minute on a CPU; shows that it runs

Needs 30 GB of disk for the weights (--folder), and a GPU of 80 GB: 54 GB are computed for 13B and
16 clients. Files are dropped from the page cache before they are loaded. Random weights take as long as real
ones, and end hardly an answer early.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from fastapi.testclient import TestClient

from benchmarks.jobs import SAMPLES
from benchmarks.machine import peak_anonymous_memory
from benchmarks.random_salmonn import SALMONN_7B, SALMONN_13B, SMALL, write_random_salmonn
from lalm.families import identify
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.published_mask import to_mask_file
from lalm.task import TaskSpec
from service.app import create_app
from service.settings import Settings

SHAPES = {"13b": SALMONN_13B, "7b": SALMONN_7B, "small": SMALL}
GIB = 2**30
ACTIVE_SHARE = 1525 / 1600  # of the published mask for asr


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return (and with --out write) the figures."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start_s = time.perf_counter()
        model_file = write_random_salmonn(Path(folder), SHAPES[options.shape], options.device)
        print(f"wrote the weights in {time.perf_counter() - start_s:.0f} s", flush=True)
        figures = _measure(model_file, options)
    for key, value in figures.items():
        print(f"| {key} | {value} |")
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--small", action="store_true", help="the small shape, float32 on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--quantize", choices=["int8", "int4"])
    parser.add_argument(
        "--mask", type=Path, help="a published mask; without one, a random one as dense as asr's"
    )
    parser.add_argument("--audio-s", type=float, default=10.0, help="length of the recording")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5, help="requests of each client")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="requests at a time")
    parser.add_argument("--folder", type=Path, help="where the weights are written; by default /tmp")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args(arguments)
    if options.small:
        options.shape, options.device, options.dtype = "small", "cpu", "float32"
    return options


def _measure(model_file: Path, options: argparse.Namespace) -> dict[str, Any]:
    weights = [
        path
        for path in model_file.parent.rglob("*")
        if path.suffix in (".bin", ".pt", ".pth", ".safetensors")
    ]
    start_s = time.perf_counter()
    identity = identify(model_file)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU",
        "dtype": options.dtype,
        "quantize": options.quantize or "no",
        "weights on disk, GiB": round(sum(path.stat().st_size for path in weights) / GIB, 2),
        "largest file, GiB": round(max(path.stat().st_size for path in weights) / GIB, 2),
        "fingerprint, s": round(time.perf_counter() - start_s, 2),
    }
    masks_dir = model_file.parent / "masks"
    masks_dir.mkdir()
    mask_file = _mask_file(identity, options)
    mask_file.save(masks_dir / "asr.json")
    figures["active heads"] = f"{mask_file.head_mask.num_active} of {mask_file.head_mask.total}"
    for path in weights:
        _drop_from_page_cache(path)

    settings = Settings(
        model=str(model_file),
        masks_dir=masks_dir,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        max_slots=max(options.clients),
        max_audio_cache_bytes=0,  # each round sends the same recordings
    )
    app = create_app(settings)
    start_s = time.perf_counter()
    with peak_anonymous_memory() as peak, TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(app.state.runtime.settled.wait)
        if app.state.runtime.failure:
            raise SystemExit(app.state.runtime.failure)
        figures["start to ready, s"] = round(time.perf_counter() - start_s, 1)
        figures["peak of anonymous host memory while loading, GiB"] = round(peak() / GIB, 2)
        for num_clients in options.clients:
            figures |= _serve(client, num_clients, options)
    if options.device.startswith("cuda"):
        figures["GPU memory allocated at most, GiB"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    return figures


def _mask_file(identity: ModelIdentity, options: argparse.Namespace) -> MaskFile:
    task = TaskSpec.model_validate(
        {
            "name": "asr",
            "title": "ASR",
            "output": {"kind": "text"},
            "max_new_tokens": options.tokens,
            "needs_speech": False,  # the recordings are noise
        }
    )
    if options.mask is not None:
        return to_mask_file(options.mask, task, identity)
    shape = (identity.num_layers, identity.num_heads)
    num_active = round(ACTIVE_SHARE * shape[0] * shape[1])
    heads = HeadMask.random(num_active, np.random.default_rng(0), shape).to_strings()
    return MaskFile(task=task, model=identity, heads=tuple(heads), training={}, evaluation={})


def _serve(client: TestClient, num_clients: int, options: argparse.Namespace) -> dict[str, Any]:
    """`rounds` requests of each of `num_clients`: seconds of a request, tokens a second of all."""
    # no two alike: what was heard before is answered from a cache
    recordings = [
        _recording(options.audio_s, seed=[num_clients, number])
        for number in range(num_clients * options.rounds + 1)
    ]

    def ask(number: int) -> dict[str, Any]:
        content, headers = recordings[number], {"Content-Type": "audio/wav"}
        start_s = time.perf_counter()
        response = client.post("/tasks/asr", content=content, headers=headers)
        response.raise_for_status()
        return {**response.json(), "latency_s": time.perf_counter() - start_s}

    ask(-1)  # warm
    with ThreadPoolExecutor(num_clients) as pool:
        start_s = time.perf_counter()
        answers = list(pool.map(ask, range(num_clients * options.rounds)))
        duration_s = time.perf_counter() - start_s
    num_tokens = sum(answer["usage"]["output_tokens"] for answer in answers)
    timings = [answer["timings_ms"] for answer in answers]
    figures: dict[str, Any] = {
        f"{num_clients} at a time: request, median s": round(
            statistics.median(answer["latency_s"] for answer in answers), 3
        ),
        f"{num_clients} at a time: tokens/s": round(num_tokens / duration_s, 1),
    }
    for stage in ("audio", "encoder", "prefill", "decode"):
        median_ms = statistics.median(timing[stage] for timing in timings)
        figures[f"{num_clients} at a time: {stage}, median ms"] = round(median_ms, 1)
    return figures


def _recording(audio_s: float, seed: list[int]) -> bytes:
    """A sample over and over, and noise; noise alone would be taken for silence and not reach the model."""
    speech, _ = sf.read(next(iter(sorted(SAMPLES.glob("*.wav")))), dtype="float32")
    num_samples = round(16_000 * audio_s)
    samples = np.resize(speech, num_samples) + np.random.default_rng(seed).normal(0, 1e-3, num_samples)
    buffer = io.BytesIO()
    sf.write(buffer, samples, 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
