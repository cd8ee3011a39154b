"""Which head mask of a training is kept: measured on the validation data, the best so far."""

from __future__ import annotations

from dataclasses import dataclass

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from training.batches import AnswerData
from training.checkpoint import Selected, TrainState
from training.config import TrainConfig
from training.generation import answers_of
from training.objective import mean_loss
from training.processes import Processes
from training.scores import goodness, score


@dataclass(frozen=True)
class Measure:
    """How good head masks are on some data, by what the recipe selects by."""

    config: TrainConfig
    family: ModelFamily
    data: AnswerData
    processes: Processes

    def __call__(self, head_mask: HeadMask) -> float:
        """What is selected by; lower is better."""
        return self._loss(head_mask) if self.config.run.select_by == "loss" else -self._score(head_mask)

    def values(self, head_mask: HeadMask) -> tuple[float, dict[str, float]]:
        """What is selected by, and what is logged."""
        loss = self._loss(head_mask)
        if self.config.run.select_by == "loss":
            return loss, {"valid_loss": loss}
        score = self._score(head_mask)
        return -score, {"valid_loss": loss, "valid_score": score}

    def _loss(self, head_mask: HeadMask) -> float:
        """The answer loss in nats, reduced as the recipe says."""
        optim = self.config.optim
        return mean_loss(
            self.family,
            self.data,
            head_mask,
            batch_size=optim.batch_size,
            reduction=optim.loss,
            amp=self.config.run.amp,
            processes=self.processes,
        )

    def _score(self, head_mask: HeadMask) -> float:
        """How good the greedy answers are; higher is better. The main process decodes."""
        value, task = 0.0, self.config.task
        if self.processes.is_main:
            answers = answers_of(
                self.family,
                self.data.audio,
                head_mask=head_mask,
                instruction=None,
                max_new_tokens=task.max_new_tokens,
            )
            references = [example.text for example in self.data.examples]
            value = goodness(score(task, references, answers, self.config.text_metric))
        return self.processes.sums(value)[0]


def validate(measure: Measure, state: TrainState) -> dict[str, float]:
    """Measure the binarised head mask and keep it if it is the best so far; returns what is logged.

    Patience counts from the end of the annealing: before it, head masks still change for noise alone.
    """
    config, head_mask = measure.config, state.mask_logits.binarised()
    value, logged = measure.values(head_mask)
    better = bool(head_mask.num_active) and (state.selected is None or value < state.selected.value)
    if better or (head_mask.num_active and not config.run.keep_best):
        logits = state.mask_logits.logits.detach().cpu().clone()
        state.selected = Selected(state.step, value, logits)
    annealed = state.step >= config.optim.steps * config.optim.tau_fraction
    state.num_stale = 0 if better or not annealed else state.num_stale + 1
    return logged


def is_stale(config: TrainConfig, state: TrainState) -> bool:
    """Whether the training has found nothing better for as long as the recipe has patience."""
    return config.run.patience is not None and state.num_stale >= config.run.patience
