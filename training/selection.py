"""Which head mask of a training is kept: measured on the validation data, the best so far."""

from __future__ import annotations

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from training.batches import AnswerData
from training.checkpoint import Selected, TrainState
from training.config import TrainConfig
from training.generation import answers_of
from training.objective import mean_loss
from training.processes import Processes
from training.scores import goodness, score


def validate(
    config: TrainConfig, family: ModelFamily, data: AnswerData, state: TrainState, processes: Processes
) -> dict[str, float]:
    """Measure the binarised head mask and keep it if it is the best so far; returns what is logged.

    Patience counts from the end of the annealing: before it, head masks still change for noise alone.
    """
    head_mask = state.mask_logits.binarised()
    values = {"valid_loss": loss_of(config, family, data, head_mask, processes)}
    value = values["valid_loss"]
    if config.run.select_by == "score":
        values["valid_score"] = score_of(config, family, data, head_mask, processes)
        value = -values["valid_score"]
    better = bool(head_mask.num_active) and (state.selected is None or value < state.selected.value)
    if better or (head_mask.num_active and not config.run.keep_best):
        logits = state.mask_logits.logits.detach().cpu().clone()
        state.selected = Selected(state.step, value, logits)
    annealed = state.step >= config.optim.steps * config.optim.tau_fraction
    state.num_stale = 0 if better or not annealed else state.num_stale + 1
    return values


def is_stale(config: TrainConfig, state: TrainState) -> bool:
    """Whether the training has found nothing better for as long as the recipe has patience."""
    return config.run.patience is not None and state.num_stale >= config.run.patience


def loss_of(
    config: TrainConfig, family: ModelFamily, data: AnswerData, head_mask: HeadMask, processes: Processes
) -> float:
    """The answer loss of a head mask, in nats, reduced as the recipe says; lower is better."""
    optim = config.optim
    return mean_loss(
        family,
        data,
        head_mask,
        batch_size=optim.batch_size,
        reduction=optim.loss,
        amp=config.run.amp,
        processes=processes,
    )


def score_of(
    config: TrainConfig, family: ModelFamily, data: AnswerData, head_mask: HeadMask, processes: Processes
) -> float:
    """How good the greedy answers under a head mask are; higher is better. The main process decodes."""
    value = 0.0
    if processes.is_main:
        answers = answers_of(
            family,
            data.audio,
            head_mask=head_mask,
            instruction=None,
            max_new_tokens=config.task.max_new_tokens,
        )
        references = [example.text for example in data.examples]
        value = goodness(score(config.task, references, answers, config.text_metric))
    return processes.sums(value)[0]
