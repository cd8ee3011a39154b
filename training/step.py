"""One step of the optimiser.

    draw a gate a sample -> [answer loss of a part, backward to its gates] x parts -> backward to the logits

The gates are drawn for the whole batch of the step, on every process alike. A step is therefore the same, up
to rounding, however its batch is cut into processes and forward passes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch

from lalm.family import ModelFamily
from training.batches import AnswerData, Batch
from training.checkpoint import TrainState
from training.config import OptimConfig, TrainConfig
from training.memory import gradient_checkpointing
from training.objective import answer_loss
from training.plan import BatchPlan, forward_passes
from training.processes import Processes
from training.schedule import annealed_tau, learning_rate


@dataclass(frozen=True)
class Stepper:
    """What every step of a training has in common."""

    config: TrainConfig
    family: ModelFamily
    data: AnswerData
    plan: BatchPlan
    processes: Processes

    def batches(self, from_step: int) -> Generator[Batch, None, None]:
        """What this process computes from `from_step` (from 0) to the last step; the audio is read ahead."""
        return self.data.stream(self._parts(copy(self.plan), from_step))

    def _parts(self, plan: BatchPlan, from_step: int) -> Iterator[list[int]]:
        for step in range(from_step, self.config.optim.steps):
            indices = plan.indices(step)
            for part in self._share(len(indices)):
                yield indices[part]

    def _share(self, batch: int) -> Sequence[slice]:
        return self.processes.share(forward_passes(batch, self.config.optim.batch_size))

    def step(self, state: TrainState, batches: Iterator[Batch]) -> dict[str, float]:
        """Make the step after `state.step`, which is not counted up; returns what is logged.

        batches: those of `batches`, from this step on.
        `loss` is that of the sampled gates, in nats, reduced as the recipe says.
        """
        optim, run, processes = self.config.optim, self.config.run, self.processes
        indices = self.plan.indices(state.step)
        over = self.data.num_targets(indices) if optim.loss == "token_mean" else len(indices)
        tau = tau_of(optim, state.step)
        gate = state.mask_logits.sample(len(indices), tau)
        leaf = gate.detach().requires_grad_()  # the backward passes of the parts end here
        nll = 0.0
        with gradient_checkpointing(self.family.decoder, enabled=run.gradient_checkpointing):
            for part in self._share(len(indices)):
                loss = answer_loss(self.family, next(batches), leaf[:, part], run.amp)
                state.scaler.scale(loss.total / over).backward()  # type: ignore[no-untyped-call]
                nll += loss.total.item()
        num_active = gate.sum(dim=(0, 2)).mean()
        penalty = optim.sparsity_lambda * (num_active - (optim.target_num_heads or 0)).abs()
        gate_grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        ends = [gate, state.scaler.scale(penalty)]
        self._update(state, ends, [processes.summed(gate_grad), None])
        return {
            "loss": processes.sums(nll)[0] / over,
            "penalty": penalty.item(),
            "lr": learning_rate(optim, state.step),
            "tau": tau,
            "num_active": float(state.mask_logits.binarised().num_active),
        }

    def _update(
        self, state: TrainState, ends: list[torch.Tensor], gradients: list[torch.Tensor | None]
    ) -> None:
        """Backward from the gates and the penalty to the logits, and a step of the optimiser."""
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, state.step)
        state.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(ends, gradients)
        state.scaler.step(state.optimizer)
        state.scaler.update()


def tau_of(optim: OptimConfig, step: int) -> float:
    """The Gumbel temperature of `step` (from 0)."""
    start, end = optim.tau_start, optim.tau_end
    return annealed_tau(step, optim.steps, start=start, end=end, fraction=optim.tau_fraction)


def step_batch_size(optim: OptimConfig, processes: Processes) -> int:
    """Samples of a step: of all processes and all their forward passes."""
    return optim.batch_size * optim.gradient_accumulation_steps * processes.count
