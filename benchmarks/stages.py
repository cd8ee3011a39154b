"""Where the time of a request goes: one client, one request at a time, over HTTP, warm.

    python -m benchmarks.stages                       the embedded model and its samples, all tasks
    python -m benchmarks.stages > benchmarks/results/stages.md
    python -m benchmarks.stages --threads 2 --repeats 30

Per task the median milliseconds of each stage: decoding the audio, its features, the encoder, the prefill,
decode steps, and the rest, which is looking for speech, HTTP (the client's part too; it is http.client, which
takes little), JSON and waiting for threads. Then what several tasks on one recording take, and transformers'
own generate under the same head masks (its processor pads each clip to 30 s). Kept audio is off, but for the
line that says otherwise. Only an idle machine gives figures worth keeping.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoProcessor

from benchmarks.machine import describe_line
from benchmarks.peers.process import ServerProcess, free_port, serve_command
from lalm import tiny
from lalm.audio import AudioLimits, decode_audio
from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor, gating
from service.catalogue import Catalogue, CatalogueEntry
from service.settings import Settings

STAGES = ("decode_audio", "features", "encoder", "prefill", "decode", "http", "total")


def main() -> None:
    """Measure and print two tables."""
    options = _options()
    torch.set_num_threads(options.threads)
    family = load_family(options.model)
    paths = sorted(options.samples.glob("*.wav"))[: options.max_recordings]
    recordings = [path.read_bytes() for path in paths]
    if not recordings:
        raise SystemExit(f"no WAV file in {options.samples}")
    print("# Stages of a request\n")
    print(f"`python -m benchmarks.stages`, {len(recordings)} recordings; {describe_line()}")
    catalogue = Catalogue.load(
        Settings.from_environment().masks_dir_for(family.identity.name), family.identity
    )
    tasks = [entry for entry in catalogue if entry.task.num_audios == 1]
    with serving(options.model, options.threads) as connection:
        print_stages(connection, family, tasks, recordings, options.repeats)
        print_several(connection, [entry.task.name for entry in tasks], recordings[0], options.repeats)
    with serving(options.model, options.threads, max_audio_cache_bytes=2**26) as connection:
        name = tasks[0].task.name
        known_ms = median_ms(partial(ask, connection, f"/tasks/{name}", recordings[0]), options.repeats)
        print(f"| {name}, the recording known | {known_ms:.1f} |")
    if Path(options.model).is_dir():
        print_generate(family, options.model, tasks, recordings, max(1, options.repeats // 5))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(tiny.CHECKPOINT))
    parser.add_argument("--samples", type=Path, default=Path("samples"))
    parser.add_argument("--max-recordings", type=int)
    parser.add_argument("--repeats", type=int, default=10, help="requests for each task and recording")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


@contextmanager
def serving(model: str, threads: int, max_audio_cache_bytes: int = 0) -> Iterator[HTTPConnection]:
    """`ahamask serve` as a process of its own, and a connection to it."""
    port = free_port()
    environment = {
        "AHAMASK_LOG_LEVEL": "warning",
        "AHAMASK_TORCH_THREADS": str(threads),
        "AHAMASK_MAX_AUDIO_CACHE_BYTES": str(max_audio_cache_bytes),
    }
    with TemporaryDirectory() as folder:
        server = ServerProcess(serve_command(model, port), Path(folder) / "ahamask.log", environment)
        try:
            asyncio.run(server.wait_until(f"http://127.0.0.1:{port}/readyz"))
            with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                yield connection
        finally:
            server.stop()


def ask(connection: HTTPConnection, path: str, recording: bytes) -> dict[str, Any]:
    """One answer."""
    connection.request("POST", path, body=recording, headers={"Content-Type": "audio/wav"})
    response = connection.getresponse()
    body = response.read()
    if response.status != HTTPStatus.OK:
        raise SystemExit(f"{path}: {response.status} {body.decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def print_stages(
    connection: HTTPConnection,
    family: ModelFamily,
    tasks: list[CatalogueEntry],
    recordings: list[bytes],
    repeats: int,
) -> None:
    """A row a task, a column a stage, in milliseconds."""
    limits = AudioLimits(max_bytes=2**30, max_duration_s=family.max_audio_s)
    waveforms = [decode_audio(recording, limits) for recording in recordings]
    decode_ms = [median_ms(partial(decode_audio, it, limits), repeats) for it in recordings]
    features_ms = [median_ms(partial(family.features, it), repeats) for it in waveforms]
    print(f"\n| task | tokens | {' | '.join(STAGES)} |\n|{'---|' * (len(STAGES) + 2)}")
    for entry in tasks:
        rows: list[tuple[float, ...]] = []
        num_tokens = []
        for index, recording in enumerate(recordings):
            for warm in range(repeats + 1):
                start_s = time.perf_counter()
                answer = ask(connection, f"/tasks/{entry.task.name}", recording)
                total = 1e3 * (time.perf_counter() - start_s)
                model = [answer["timings_ms"][stage] for stage in ("encoder", "prefill", "decode")]
                audio = (decode_ms[index], features_ms[index])
                if warm:
                    rows.append((*audio, *model, total - sum(audio) - sum(model), total))
                    num_tokens.append(answer["usage"]["output_tokens"])
        medians = (f"{statistics.median(column):.1f}" for column in zip(*rows, strict=True))
        print(f"| {entry.task.name} | {statistics.mean(num_tokens):.1f} | {' | '.join(medians)} |")


def print_several(connection: HTTPConnection, names: list[str], recording: bytes, repeats: int) -> None:
    """One upload under the longest task alone and under all of them."""

    def several(asked: list[str]) -> Callable[[], dict[str, Any]]:
        return partial(ask, connection, f"/tasks?tasks={','.join(asked)}", recording)

    alone_ms = {name: median_ms(several([name]), repeats) for name in names}
    longest = max(alone_ms, key=alone_ms.__getitem__)
    print("\n| one recording | ms |\n|---|---|")
    print(f"| {longest}, the longest alone | {alone_ms[longest]:.1f} |")
    print(f"| all {len(names)} tasks, one after the other | {sum(alone_ms.values()):.1f} |")
    print(f"| all {len(names)} tasks, one request | {median_ms(several(names), repeats):.1f} |")


def print_generate(
    family: ModelFamily, folder: str, tasks: list[CatalogueEntry], recordings: list[bytes], repeats: int
) -> None:
    """transformers' generate on the audio alone, under each task's gate, with its own processor."""
    processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    text = f"{processor.audio_bos_token}{processor.audio_token}{processor.audio_eos_token}"
    limits = AudioLimits(max_bytes=2**30, max_duration_s=family.max_audio_s)

    model: Any = family.model

    def generate(entry: CatalogueEntry, recording: bytes) -> None:
        waveform = decode_audio(recording, limits)
        inputs = processor(text=text, audio=[waveform], sampling_rate=16_000, return_tensors="pt")
        gate = gate_tensor([entry.head_mask], family.identity.num_layers, family.identity.num_heads)
        with gating(family.decoder, gate), torch.no_grad():
            model.generate(**inputs, max_new_tokens=entry.task.max_new_tokens, do_sample=False)

    print("\n| transformers generate | ms |\n|---|---|")
    for entry in tasks:
        medians = [median_ms(partial(generate, entry, it), repeats) for it in recordings]
        print(f"| {entry.task.name} | {statistics.median(medians):.1f} |", flush=True)


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds of `call`, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start_s)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
