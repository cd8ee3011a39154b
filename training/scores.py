"""Which metrics a task has, by the form of its answer. All in percent.

text     by the recipe's `text_metric`: wer -> WER, CER; bleu -> BLEU, chrF; rouge -> ROUGE-L, CIDEr-D, METEOR
label    IFR, accuracy, macro-F1; for two recordings and two labels the equal error rate too
fields   IFR (the share of answers in the asked format), then the metrics of each free field and of each field
json     with labels; an answer out of format has no fields: it counts as wrong and as empty
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from lalm.task import OutputField, OutputKind, TaskSpec
from training.metrics import TextMetric, captions, labels, transcripts, translations
from training.metrics.labels import Confusion
from training.metrics.measured import Floats, Measured, averaged

LOWER_IS_BETTER = frozenset({"wer", "cer", "eer"})
MAIN_METRICS = frozenset({"ifr", "acc", *get_args(TextMetric)})
TITLES = {
    "f1": "macro-F1",
    "chrf": "chrF",
    "rouge": "ROUGE-L",
    "cider": "CIDEr-D",
}


@dataclass(frozen=True)
class Scores:
    """Every metric of a run, and the confusion matrix of each field with labels."""

    measured: tuple[Measured, ...]
    confusions: dict[str, Confusion]


def score(
    task: TaskSpec, references: Sequence[str], answers: Sequence[str], text_metric: TextMetric = "wer"
) -> dict[str, float]:
    """The main metrics by name; a metric of a part is `<metric>_<field>` where the task has several such
    parts.

    Raises:
        ValueError: no references, or not as many as answers.
    """
    texts = [(reference,) for reference in references]
    measured = _measure(task, texts, answers, text_metric, main_only=True)
    return {one.name: one.value for one in measured}


def measure(
    task: TaskSpec,
    references: Sequence[Sequence[str]],
    answers: Sequence[str],
    text_metric: TextMetric = "wer",
    label_scores: Floats | None = None,
) -> Scores:
    """Every metric. `references` are right answers, one or more an example; metrics that know only one take
    the first.

    label_scores: float64 [num_examples, 2], log-probabilities of the labels of a verification task.

    Raises:
        ValueError: no references, or not as many as answers.
    """
    measured = list(_measure(task, references, answers, text_metric, main_only=False))
    expected = [task.parse(texts[0]).result for texts in references]
    said = _said(task, answers)
    confusions = {
        field.name: labels.confusion(field.labels, _right(expected, field), _column(said, field))
        for field in task.output.result_fields
        if field.labels is not None
    }
    if label_scores is not None:
        first = (task.output.labels or ())[0]
        targets = np.array([result["label"] == first for result in expected])
        measured.append(labels.equal_error_rate(label_scores[:, 0] - label_scores[:, 1], targets))
    return Scores(tuple(measured), confusions)


def is_verification(task: TaskSpec) -> bool:
    """Whether the answers say yes or no to two recordings, so that there is an equal error rate."""
    return task.num_audios == 2 and len(task.output.labels or ()) == 2


def goodness(metrics: dict[str, float]) -> float:
    """One number from 0 to 100, higher is better: the mean of the metrics, error rates turned round."""
    values = [upward(name, value) for name, value in metrics.items()]
    return sum(values) / len(values)


def upward(metric: str, value: float) -> float:
    """The metric, higher is better: of an error rate, what it leaves of 100."""
    return 100.0 - min(value, 100.0) if is_error(metric) else value


def is_error(metric: str) -> bool:
    """Whether a lower value of the metric is better."""
    return metric.split("_")[0] in LOWER_IS_BETTER


def is_main(metric: str) -> bool:
    """Whether `score` has the metric, too."""
    return metric.split("_")[0] in MAIN_METRICS


def metric_title(metric: str) -> str:
    """`wer_transcript` -> "WER transcript ↓"; the arrow says which way is better."""
    name, _, part = metric.partition("_")
    title = TITLES.get(name, name.upper())
    return " ".join(filter(None, (title, part, "↓" if is_error(metric) else "↑")))


def _measure(
    task: TaskSpec,
    references: Sequence[Sequence[str]],
    answers: Sequence[str],
    text_metric: TextMetric,
    *,
    main_only: bool,
) -> Iterator[Measured]:
    if not references or len(references) != len(answers):
        raise ValueError(f"{len(references)} references for {len(answers)} answers")
    if task.output.kind is not OutputKind.TEXT:
        in_format = [task.parse(answer).format_ok for answer in answers]
        yield averaged("ifr", 100 * np.array(in_format, dtype=np.float64))
    said = _said(task, answers)
    expected = [[task.parse(text).result for text in texts] for texts in references]
    fields = task.output.result_fields
    for field in fields:
        column = _column(said, field)
        if field.labels is None:
            right = [[result[field.name] or "" for result in results] for results in expected]
            metrics = list(_of_text(text_metric, right, [text or "" for text in column], main_only))
        else:
            first = [results[0] for results in expected]
            metrics = list(_of_label(field, _right(first, field), column))
        alike = [other for other in fields if (other.labels is None) == (field.labels is None)]
        for metric in metrics:
            if not main_only or metric.name in MAIN_METRICS:
                yield metric if len(alike) == 1 else replace(metric, name=f"{metric.name}_{field.name}")


def _said(task: TaskSpec, answers: Sequence[str]) -> list[dict[str, str | None]]:
    """What each answer says; nothing where it is out of format."""
    parsed = [task.parse(answer) for answer in answers]
    return [one.result if one.format_ok else dict.fromkeys(one.result) for one in parsed]


def _column(results: Sequence[dict[str, str | None]], field: OutputField) -> list[str | None]:
    return [result[field.name] for result in results]


def _right(results: Sequence[dict[str, str | None]], field: OutputField) -> list[str]:
    return [value or "" for value in _column(results, field)]


def _of_label(
    field: OutputField, references: Sequence[str], answers: Sequence[str | None]
) -> Iterator[Measured]:
    yield labels.accuracy(references, answers)
    yield labels.macro_f1(field.labels or (), references, answers)


def _of_text(
    metric: TextMetric, references: Sequence[Sequence[str]], answers: Sequence[str], main_only: bool
) -> Iterator[Measured]:
    if metric == "wer":
        first = [texts[0] for texts in references]
        yield from transcripts.error_rates(first, answers, characters=not main_only)
    elif metric == "bleu":
        yield translations.bleu(references, answers)
        if not main_only:
            yield translations.chrf(references, answers)
    else:
        yield captions.rouge_l(references, answers)
        if not main_only:
            yield captions.cider_d(references, answers)
            meteor = captions.meteor(references, answers)
            if meteor is not None:
                yield meteor
