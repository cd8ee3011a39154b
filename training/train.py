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

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lalm.copied_heads import merge_copied_heads
from lalm.families import load_family
from lalm.family import ModelFamily
from training.batches import AnswerData
from training.checkpoint import Selected, TrainLog, TrainState, has_checkpoint
from training.config import TrainConfig
from training.continuing import initial_logits
from training.data import TrainData, load_data
from training.errors import TrainingError
from training.interrupt import interrupt_after_step
from training.mask_logits import MaskLogits, binarise
from training.memory import grad_scaler
from training.plan import BatchPlan
from training.processes import ALONE, Processes, launched
from training.record import recipe_of, validation_of, write_mask
from training.refine import refine
from training.selection import Measure, is_stale, validate
from training.splits import subset
from training.step import Stepper, step_batch_size

__all__ = ["fresh_state", "load_configured_family", "subset", "train"]


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
        data = load_data(config, family, processes, progress)
        found: list[tuple[_Job, Selected]] = []
        for number, seeded in enumerate(config.by_seed):
            job = _Job(seeded, family, data, processes, progress)
            resumed = resume and (number == 0 or has_checkpoint(seeded.run_folder))
            selected = _train_seed(job, resume=resumed)
            found += [(job, selected)] if selected is not None else []
        if not found:
            raise TrainingError(f"task {config.task.name!r}: every head mask found was empty")
        best, selected = min(found, key=lambda pair: pair[1].value)
        refined, further = _refine(best, selected)
    if processes.is_main:
        _write(config, found, best, refined, further)
    processes.wait()
    return config.out


def load_configured_family(config: TrainConfig, processes: Processes = ALONE) -> ModelFamily:
    """The model a recipe names, its copied heads merged."""
    run = config.run
    device = processes.place(run.device)
    family = load_family(config.checkpoint, revision=config.revision, device=device, dtype=run.dtype)
    merge_copied_heads(family.decoder)
    return family


@dataclass(frozen=True)
class _Job:
    """The training of one seed, and what it shares with the others."""

    config: TrainConfig
    family: ModelFamily
    data: TrainData
    processes: Processes
    progress: Progress

    def measure(self, data: AnswerData) -> Measure:
        """How good head masks are on `data`."""
        return Measure(self.config, self.family, data, self.processes)


def _train_seed(job: _Job, *, resume: bool) -> Selected | None:
    """Train with the seed of `job`; returns what is to be kept, nothing if every head mask was empty."""
    recipe = recipe_of(job.config, job.family, job.data, job.processes)
    state = fresh_state(job.config, job.family)
    if resume:
        state.restore(job.config.run_folder, recipe)
    _run(job, state, recipe)
    return state.selected


def fresh_state(config: TrainConfig, family: ModelFamily) -> TrainState:
    """What a training starts with: the first logits of its seed, or of the head mask it goes on from."""
    optim = config.optim
    mask_logits = MaskLogits(
        family.identity.num_layers,
        family.identity.num_heads,
        init_mean=optim.init_mean,
        init_std=optim.init_std,
        generator=torch.Generator().manual_seed(config.run.seed),
    )
    if (logits := initial_logits(config, family)) is not None:
        with torch.no_grad():
            mask_logits.logits.copy_(logits)
    mask_logits.to(family.device)
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
    on_valid = job.measure(job.data.valid)
    name = f"head mask: {config.task.name}, seed {run.seed}"
    bar = job.progress.add_task(name, total=steps, completed=state.step, state="")
    with (
        TrainLog(config.run_folder if is_main else None, state.step, tensorboard=run.tensorboard) as log,
        closing(stepper.batches(state.step)) as batches,
        interrupt_after_step() as stop,
    ):
        if state.step == 0 and run.init_from is not None:
            log.write(0, validate(on_valid, state))  # what it goes on from is the first to beat
        while state.step < steps and not is_stale(config, state):
            values = stepper.step(state, batches)
            state.step += 1
            if state.step % run.valid_every == 0 or state.step == steps:
                values |= validate(on_valid, state)
            log.write(state.step, values)
            shown = f"loss {values['loss']:.3f}  tau {values['tau']:.2f}  active {values['num_active']:.0f}"
            job.progress.update(bar, completed=state.step, state=shown)
            interrupted = processes.sums(stop())[0] > 0  # all of them stop after the same step
            due = state.step % run.checkpoint_every == 0 or state.step == steps or is_stale(config, state)
            if is_main and (due or interrupted):
                state.save(config.run_folder, recipe)
            if interrupted:
                raise KeyboardInterrupt


def _refine(job: _Job, selected: Selected) -> tuple[Selected, dict[str, Any]]:
    """The head mask after the flips of single heads, where the recipe wants them, and their record."""
    settings = job.config.refine
    if settings is None:
        return selected, {}
    bar = job.progress.add_task("refinement", total=settings.num_candidates, state="")
    refined = refine(
        selected.logits,
        job.measure(job.data.dev),
        num_candidates=settings.num_candidates,
        min_gain=settings.min_gain,
        on_tried=lambda: job.progress.advance(bar),
    )
    value = job.measure(job.data.valid)(binarise(refined.logits))
    record = {"num_tried": refined.num_tried, "num_flipped": len(refined.flipped)}
    values = {"before": refined.before, "after": refined.after}
    return Selected(selected.step, value, refined.logits), {"refine": {**record, **values}}


def _write(
    config: TrainConfig,
    found: Sequence[tuple[_Job, Selected]],
    best: _Job,
    refined: Selected,
    further: dict[str, Any],
) -> None:
    """Write the best head mask, and where there are several seeds each one's as it was found."""
    if config.run.seeds:
        for job, selected in found:
            write_mask(job.config.run_folder / config.out.name, job.config, job.family, job.data, selected)
        seeds = {str(job.config.run.seed): validation_of(config, selected) for job, selected in found}
        further = {**further, "seeds": seeds}
    write_mask(config.out, best.config, best.family, best.data, refined, further)


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
