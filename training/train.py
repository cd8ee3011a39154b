"""The mask recipe: a frozen model, (audio, text) pairs, one logit a head.

    load the model and the data -> [sample gates, answer loss, step] x steps, validated -> mask file

Source: AHAMask (arXiv 2509.01787), "Method" and the published training configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.batches import AnswerData
from training.checkpoint import TrainLog, TrainState
from training.config import TrainConfig
from training.errors import TrainingError
from training.interrupt import interrupt_after_step
from training.manifest import Example, Manifest, load_manifest
from training.mask_logits import MaskLogits, binarise
from training.memory import grad_scaler
from training.plan import BatchPlan
from training.processes import ALONE, Processes, launched
from training.selection import validate
from training.step import Stepper, step_batch_size


def train(
    config: TrainConfig,
    *,
    family: ModelFamily | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Train the head mask of a recipe and write it; returns the path of the mask file.

    `family` is the model, where it is loaded already. With `resume` the training goes on from its checkpoint
    as if it had never stopped. An interrupt (SIGINT) leaves a checkpoint.

    Raises:
        TrainingError: data, recipe or checkpoint cannot be used, or every head mask found was empty.
        LalmError: the model cannot be loaded or the mask file cannot be written.
        KeyboardInterrupt: interrupted; the checkpoint is written.
    """
    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)
    processes = launched(config.run.device)
    family = family or load_configured_family(config, processes)
    with _progress(console, processes) as progress:
        data = _load_data(config, family, progress)
        recipe = _recipe(config, family, data, processes)
        state = _fresh_state(config, family)
        if resume:
            state.restore(config.run_folder, recipe)
        _run(config, family, data, state, recipe, progress, processes)
    if processes.is_main:
        _write(config, family, data, state)
    processes.wait()
    return config.out


def load_configured_family(config: TrainConfig, processes: Processes = ALONE) -> ModelFamily:
    """The model a recipe names."""
    run = config.run
    device = processes.place(run.device)
    return load_family(config.checkpoint, revision=config.revision, device=device, dtype=run.dtype)


@dataclass(frozen=True)
class _Data:
    train_manifest: Manifest
    valid_manifest: Manifest
    train: AnswerData
    valid: AnswerData


def _load_data(config: TrainConfig, family: ModelFamily, progress: Progress) -> _Data:
    data = config.data
    manifests = [load_manifest(path, config.task, data.task) for path in (data.train, data.valid)]
    limits = (data.max_train_examples, data.max_valid_examples)
    train_data, valid_data = (
        AnswerData(family, subset(manifest.examples, limit), keep_audio=data.cache_audio)
        for manifest, limit in zip(manifests, limits, strict=True)
    )
    for name, part in (("train", train_data), ("valid", valid_data)):
        if data.cache_audio:
            bar = progress.add_task(f"audio embeddings: {name}", total=len(part.audio), state="")
            for done in part.audio.warm():
                progress.advance(bar, done)
    return _Data(manifests[0], manifests[1], train_data, valid_data)


def subset(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """At most `limit` examples, always the same ones, spread over the whole manifest."""
    if limit is None or len(examples) <= limit:
        return examples
    chosen = np.random.default_rng(0).permutation(len(examples))[:limit]
    return [examples[index] for index in sorted(chosen)]


def _fresh_state(config: TrainConfig, family: ModelFamily) -> TrainState:
    optim = config.optim
    mask_logits = MaskLogits(
        family.identity.num_layers,
        family.identity.num_heads,
        init_mean=optim.init_mean,
        init_std=optim.init_std,
        generator=torch.Generator().manual_seed(config.run.seed),
    ).to(family.device)
    optimizer = torch.optim.AdamW(
        mask_logits.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
    )
    return TrainState(mask_logits, optimizer, grad_scaler(config.run.amp, family.device))


def _run(
    config: TrainConfig,
    family: ModelFamily,
    data: _Data,
    state: TrainState,
    recipe: dict[str, Any],
    progress: Progress,
    processes: Processes,
) -> None:
    """From `state.step` to the last step."""
    steps, run, is_main = config.optim.steps, config.run, processes.is_main
    plan = BatchPlan(data.train.lengths(), step_batch_size(config.optim, processes), run.seed)
    stepper = Stepper(config, family, data.train, plan, processes)
    bar = progress.add_task(f"head mask: {config.task.name}", total=steps, completed=state.step, state="")
    with (
        TrainLog(config.run_folder if is_main else None, state.step, tensorboard=run.tensorboard) as log,
        interrupt_after_step() as stop,
    ):
        while state.step < steps:
            values = stepper.step(state)
            state.step += 1
            if state.step % run.valid_every == 0 or state.step == steps:
                values |= validate(config, family, data.valid, state, processes)
            log.write(state.step, values)
            shown = f"loss {values['loss']:.3f}  tau {values['tau']:.2f}  active {values['num_active']:.0f}"
            progress.update(bar, completed=state.step, state=shown)
            interrupted = processes.sums(stop())[0] > 0  # all of them stop after the same step
            if is_main and (state.step % run.checkpoint_every == 0 or state.step == steps or interrupted):
                state.save(config.run_folder, recipe)
            if interrupted:
                raise KeyboardInterrupt


def _recipe(config: TrainConfig, family: ModelFamily, data: _Data, processes: Processes) -> dict[str, Any]:
    """What determines the result, as JSON values; how a step is cut into processes and passes does not."""
    kept = config.model_dump(mode="json", include={"task", "optim", "preset"})
    kept["optim"]["batch_size"] = step_batch_size(config.optim, processes)
    del kept["optim"]["gradient_accumulation_steps"]
    run = config.run.model_dump(
        mode="json", include={"seed", "valid_every", "select_by", "keep_best", "dtype", "amp"}
    )
    limits = config.data.model_dump(include={"max_train_examples", "max_valid_examples", "cache_audio"})
    sha256 = {"train": data.train_manifest.sha256, "valid": data.valid_manifest.sha256}
    return {**kept, **run, **limits, "fingerprint": family.identity.fingerprint, "manifest_sha256": sha256}


def _write(config: TrainConfig, family: ModelFamily, data: _Data, state: TrainState) -> None:
    if state.selected is None:
        raise TrainingError(f"task {config.task.name!r}: every head mask found was empty; nothing is written")
    optim, selected = config.optim, state.selected
    head_mask = binarise(selected.logits)
    validation = selected.value if config.run.select_by == "loss" else -selected.value
    mask_file = MaskFile(
        task=config.task,
        model=family.identity,
        heads=tuple(head_mask.to_strings()),
        training={
            "recipe": config.name,
            "preset": config.preset,
            "seed": config.run.seed,
            "optim": optim.model_dump(mode="json"),
            "selected_step": selected.step,
            f"validation_{config.run.select_by}": validation,
            "train_manifest_sha256": data.train_manifest.sha256,
            "valid_manifest_sha256": data.valid_manifest.sha256,
            "num_train_examples": len(data.train.examples),
            "num_valid_examples": len(data.valid.examples),
        },
        evaluation={},
    )
    mask_file.save(config.out)


def _progress(console: Console | None, processes: Processes) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    console = console or Console(stderr=True)
    return Progress(*columns, console=console, disable=not processes.is_main)
