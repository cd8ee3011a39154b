"""The mask recipe: a frozen model, (audio, text) pairs, one logit a head.

    load the model and the data -> [sample gates, answer loss, step] x steps, validated -> mask file

A training a seed; the best of them becomes the mask file. `training/step.py` is what one step does.

Source: AHAMask (arXiv 2509.01787), "Method" and the published training configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lalm.families import load_family
from lalm.family import ModelFamily
from training.batches import AnswerData, AudioEmbeddings
from training.checkpoint import Selected, TrainLog, TrainState, has_checkpoint
from training.config import TrainConfig
from training.embedding_store import open_store
from training.errors import TrainingError
from training.interrupt import interrupt_after_step
from training.manifest import Example, load_manifest
from training.mask_logits import MaskLogits
from training.memory import grad_scaler
from training.plan import BatchPlan
from training.processes import ALONE, Processes, launched
from training.record import TrainData, recipe_of, validation_of, write_mask
from training.selection import is_stale, validate
from training.step import Stepper, step_batch_size


def train(
    config: TrainConfig,
    *,
    family: ModelFamily | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Train the head mask of a recipe and write it; returns the path of the mask file.

    With several seeds the best head mask on validation is written, and that of each seed into its folder.
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
        data = _load_data(config, family, processes, progress)
        found: list[tuple[TrainConfig, Selected | None]] = []
        for seeded in config.by_seed:
            job = _Job(seeded, family, data, processes, progress)
            resumed = resume and (not found or has_checkpoint(seeded.run_folder))
            found.append((seeded, _train_seed(job, resume=resumed)))
    _write(config, job, found)
    return config.out


def load_configured_family(config: TrainConfig, processes: Processes = ALONE) -> ModelFamily:
    """The model a recipe names."""
    run = config.run
    device = processes.place(run.device)
    return load_family(config.checkpoint, revision=config.revision, device=device, dtype=run.dtype)


def subset(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """At most `limit` examples, always the same ones, spread over the whole manifest."""
    if limit is None or len(examples) <= limit:
        return examples
    chosen = np.random.default_rng(0).permutation(len(examples))[:limit]
    return [examples[index] for index in sorted(chosen)]


def _load_data(
    config: TrainConfig, family: ModelFamily, processes: Processes, progress: Progress
) -> TrainData:
    data = config.data
    train_manifest, valid_manifest = (
        load_manifest(path, config.task, data.task) for path in (data.train, data.valid)
    )
    limited = [
        subset(train_manifest.examples, data.max_train_examples),
        subset(valid_manifest.examples, data.max_valid_examples),
    ]
    store = open_store(data, family, processes)
    train_audio, valid_audio = (
        AudioEmbeddings(
            family,
            examples,
            keep=data.cache_audio and store is None,
            store=store,
            num_workers=data.num_workers,
        )
        for examples in limited
    )
    kept = {"train": train_audio, "valid": valid_audio} if data.cache_audio or store is not None else {}
    for name, audio in kept.items():
        bar = progress.add_task(f"audio embeddings: {name}", total=len(audio), state="")
        for done in audio.warm(processes):
            progress.advance(bar, done)
    if store is not None:
        progress.console.print(store.describe(), highlight=False, soft_wrap=True)
    parts = (AnswerData(family, train_audio), AnswerData(family, valid_audio))
    return TrainData(train_manifest, valid_manifest, *parts)


@dataclass(frozen=True)
class _Job:
    """The training of one seed, and what it shares with the others."""

    config: TrainConfig
    family: ModelFamily
    data: TrainData
    processes: Processes
    progress: Progress


def _train_seed(job: _Job, *, resume: bool) -> Selected | None:
    """Train with the seed of `job`; returns what is to be kept, nothing if every head mask was empty."""
    recipe = recipe_of(job.config, job.family, job.data, job.processes)
    state = _fresh_state(job.config, job.family)
    if resume:
        state.restore(job.config.run_folder, recipe)
    _run(job, state, recipe)
    return state.selected


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


def _run(job: _Job, state: TrainState, recipe: dict[str, Any]) -> None:
    """From `state.step` to the last step, or until nothing better is found any more."""
    config, processes = job.config, job.processes
    steps, run, is_main = config.optim.steps, config.run, processes.is_main
    plan = BatchPlan(job.data.train.lengths(), step_batch_size(config.optim, processes), run.seed)
    stepper = Stepper(config, job.family, job.data.train, plan, processes)
    name = f"head mask: {config.task.name}, seed {run.seed}"
    bar = job.progress.add_task(name, total=steps, completed=state.step, state="")
    with (
        TrainLog(config.run_folder if is_main else None, state.step, tensorboard=run.tensorboard) as log,
        closing(stepper.batches(state.step)) as batches,
        interrupt_after_step() as stop,
    ):
        while state.step < steps and not is_stale(config, state):
            values = stepper.step(state, batches)
            state.step += 1
            if state.step % run.valid_every == 0 or state.step == steps:
                values |= validate(config, job.family, job.data.valid, state, processes)
            log.write(state.step, values)
            shown = f"loss {values['loss']:.3f}  tau {values['tau']:.2f}  active {values['num_active']:.0f}"
            job.progress.update(bar, completed=state.step, state=shown)
            interrupted = processes.sums(stop())[0] > 0  # all of them stop after the same step
            due = state.step % run.checkpoint_every == 0 or state.step == steps or is_stale(config, state)
            if is_main and (due or interrupted):
                state.save(config.run_folder, recipe)
            if interrupted:
                raise KeyboardInterrupt


def _write(config: TrainConfig, job: _Job, found: Sequence[tuple[TrainConfig, Selected | None]]) -> None:
    """Write the best head mask, and where there are several seeds each one's."""
    kept = [(seeded, selected) for seeded, selected in found if selected is not None]
    if not kept:
        raise TrainingError(f"task {config.task.name!r}: every head mask found was empty; nothing is written")
    seeds = {str(seeded.run.seed): validation_of(seeded, selected) for seeded, selected in kept}
    if job.processes.is_main:
        if len(found) > 1:
            for seeded, selected in kept:
                write_mask(seeded.run_folder / config.out.name, seeded, job.family, job.data, selected, {})
        seeded, selected = min(kept, key=lambda pair: pair[1].value)
        further = {"seeds": seeds} if len(found) > 1 else {}
        write_mask(config.out, seeded, job.family, job.data, selected, further)
    job.processes.wait()


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
