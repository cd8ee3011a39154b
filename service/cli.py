"""The commands `serve` and `run`; what is slow to import is imported when they run."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from service.batch import FileAnswer
    from service.settings import Settings

Model = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint folder, model file or Hugging Face id.  [AHAMASK_MODEL; default: tiny-lalm]"
    ),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hugging Face id.  [AHAMASK_REVISION]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.  [AHAMASK_DEVICE; default: cpu]")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16.  [AHAMASK_DTYPE; default: float32]")
]
Quantize = Annotated[
    str | None, typer.Option(help="int8 or int4 weights in the decoder.  [AHAMASK_QUANTIZE; default: none]")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="auto: over all GPUs; or JSON, module to device.  [AHAMASK_DEVICE_MAP; default: none]"),
]
MasksDir = Annotated[
    Path | None,
    typer.Option("--masks", help="Folder of mask files.  [AHAMASK_MASKS_DIR; default: masks/<model name>]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def settings_of(**options: Any) -> Settings:
    """The environment's settings under the options that were given.

    Raises:
        SettingsError: a value does not fit.
    """
    from service.settings import Settings

    return Settings.from_environment(**{name: value for name, value in options.items() if value is not None})


def serve(
    host: Annotated[str | None, typer.Option(help="Address.  [AHAMASK_HOST; default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port.  [AHAMASK_PORT, PORT; default: 8080]")] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    device_map: DeviceMap = None,
    masks: MasksDir = None,
) -> None:
    """Answer recordings over HTTP.

    Serves every task that has a head mask, until SIGTERM or SIGINT; requests accepted by then are answered.
    The other settings (slots, limits, logs) are AHAMASK_ variables of the environment: README.md has them.

    \b
    ahamask serve --port 9000
    ahamask serve --model Qwen/Qwen2-Audio-7B --device cuda --dtype bfloat16
    """
    settings = settings_of(
        host=host,
        port=port,
        model=model,
        revision=revision,
        device=device,
        dtype=dtype,
        quantize=quantize,
        device_map=device_map,
        masks_dir=masks,
    )
    from service.app import serve as serve_http

    raise typer.Exit(serve_http(settings))


def run(
    task: Annotated[str, typer.Argument(help="Name of a task, such as asr.")],
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Recordings.")],
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    device_map: DeviceMap = None,
    masks: MasksDir = None,
    as_json: Json = False,
) -> None:
    """Answer recordings without HTTP.

    Gives what the service would answer; several files are one batch. Prints the text of the answer, behind
    the name of the file if there are several. Tasks on two recordings take the files in pairs. A file that
    cannot be used is named on standard error; the others are answered.

    \b
    ahamask run asr kitchen.wav
    ahamask run gr --json *.flac | jq .result.label
    """
    settings = settings_of(
        model=model,
        revision=revision,
        device=device,
        dtype=dtype,
        quantize=quantize,
        device_map=device_map,
        masks_dir=masks,
    )
    from service.batch import answer_files
    from service.errors import UnknownTaskError
    from service.loading import load
    from service.logging import configure_logging
    from service.metrics import Metrics

    configure_logging("error", as_json=settings.log_json)
    loaded = load(settings, Metrics())
    try:
        entry = loaded.catalogue[task]
    except UnknownTaskError as error:
        raise typer.BadParameter(str(error)) from error
    num_audios = entry.task.num_audios
    if len(files) % num_audios:
        raise typer.BadParameter(f"task {task!r} takes files in groups of {num_audios}, not {len(files)}")
    groups = [files[start : start + num_audios] for start in range(0, len(files), num_audios)]
    show = partial(_print, task=task, as_json=as_json, named=len(groups) > 1)
    loaded.engine.start([entry.head_mask])
    try:
        answering = answer_files(
            loaded,
            entry,
            groups,
            show,
            max_in_flight=settings.max_slots,
            audio_workers=settings.audio_workers,
        )
        num_failed = asyncio.run(answering)
    finally:
        loaded.engine.stop()
    raise typer.Exit(1 if num_failed else 0)


def _print(answer: FileAnswer, *, task: str, as_json: bool, named: bool) -> None:
    names = [str(file) for file in answer.files]
    if answer.parsed is None:
        print(f"ahamask: {' '.join(names)}: {answer.error}", file=sys.stderr)
    elif as_json:
        file = names if len(names) > 1 else names[0]
        line = {"task": task, "file": file, "text": answer.text, **answer.parsed._asdict()}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        print(*(names if named else ()), answer.text, sep="\t", flush=True)
