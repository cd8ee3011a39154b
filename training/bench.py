"""The recordings of one task, embedded once, and answered under any head mask or instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.progress import Progress

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from training.batches import AudioEmbeddings
from training.config import TrainConfig
from training.generation import answers_of
from training.label_scores import label_scores
from training.manifest import Example
from training.scores import Scores, is_verification, measure

Condition = Literal["mask", "instruction", "random", "none", "other"]


@dataclass(frozen=True)
class Plan:
    """What the model is steered by; `detail` tells the runs of one condition apart."""

    condition: Condition
    detail: str | None = None
    head_mask: HeadMask | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Run:
    """One decoding of the recordings; `detail` is the instruction, a mask file, or a random mask's seed."""

    condition: Condition
    detail: str | None
    num_active: int
    scores: Scores
    answers: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric by name."""
        return {measured.name: measured.value for measured in self.scores.measured}


class Bench:
    """Examples of one recipe's task; their audio is encoded when the bench is made."""

    def __init__(
        self,
        config: TrainConfig,
        family: ModelFamily,
        examples: tuple[Example, ...],
        progress: Progress,
        *,
        num_beams: int = 1,
        batch_size: int = 16,
    ) -> None:
        self._config, self._family, self._progress = config, family, progress
        self._num_beams, self._batch_size = num_beams, batch_size
        self._references = [example.references for example in examples]
        self._audio = AudioEmbeddings(family, examples, keep=config.data.cache_audio)
        bar = progress.add_task(f"audio embeddings: {config.task.name}", total=len(examples))
        for done in self._audio.warm():
            progress.advance(bar, done)

    def run(self, plan: Plan) -> Run:
        """Answer every recording and measure the answers.

        Raises:
            ManifestError: a recording that cannot be read or is too long.
        """
        task, identity = self._config.task, self._family.identity
        name = plan.condition if plan.detail is None else f"{plan.condition} {plan.detail:.40}"
        bar = self._progress.add_task(f"{task.name}: {name}", total=len(self._references))
        answers = answers_of(
            self._family,
            self._audio,
            head_mask=plan.head_mask,
            instruction=plan.instruction,
            max_new_tokens=task.max_new_tokens,
            num_beams=self._num_beams,
            batch_size=self._batch_size,
            on_done=lambda done: self._progress.advance(bar, done),
        )
        likely = None
        if is_verification(task):
            likely = label_scores(
                self._family,
                self._audio,
                task.output.labels or (),
                head_mask=plan.head_mask,
                instruction=plan.instruction,
                batch_size=self._batch_size,
            )
        total = identity.num_layers * identity.num_heads
        return Run(
            plan.condition,
            plan.detail,
            total if plan.head_mask is None else plan.head_mask.num_active,
            measure(task, self._references, answers, self._config.text_metric, likely),
            tuple(answers),
        )
