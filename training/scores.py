"""Scores of answers against references, all in percent.

text     WER, or BLEU where the recipe says so
label    ACC
fields   IFR (the share of answers in the asked format), then WER or BLEU of each free field and ACC of
json     each field with labels; an answer out of format has no fields: it counts as wrong and as empty
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import jiwer
import sacrebleu

from lalm.task import OutputKind, TaskSpec

TextMetric = Literal["wer", "bleu"]

LOWER_IS_BETTER = frozenset({"wer"})


def score(
    task: TaskSpec, references: Sequence[str], answers: Sequence[str], text_metric: TextMetric = "wer"
) -> dict[str, float]:
    """Each metric by name; a metric of a part is `<metric>_<field>` where the task has several such parts.

    Raises:
        ValueError: no references, or not as many as answers.
    """
    if not references or len(references) != len(answers):
        raise ValueError(f"{len(references)} references for {len(answers)} answers")
    expected = [task.parse(text).result for text in references]
    parsed = [task.parse(text) for text in answers]
    metrics: dict[str, float] = {}
    if task.output.kind is not OutputKind.TEXT:
        metrics["ifr"] = 100.0 * sum(answer.format_ok for answer in parsed) / len(parsed)
    fields = task.output.result_fields
    for field in fields:
        metric = text_metric if field.labels is None else "acc"
        right = [result[field.name] or "" for result in expected]
        said = [(answer.result[field.name] or "") if answer.format_ok else "" for answer in parsed]
        alike = [other for other in fields if (other.labels is None) == (field.labels is None)]
        name = metric if len(alike) == 1 else f"{metric}_{field.name}"
        metrics[name] = _SCORERS[metric](right, said)
    return metrics


def goodness(metrics: dict[str, float]) -> float:
    """One number from 0 to 100, higher is better: the mean of the metrics, error rates turned round."""
    values = [100.0 - min(value, 100.0) if is_error(name) else value for name, value in metrics.items()]
    return sum(values) / len(values)


def is_error(metric: str) -> bool:
    """Whether a lower value of the metric is better."""
    return metric.split("_")[0] in LOWER_IS_BETTER


def normalise(text: str) -> str:
    """Lower case, without punctuation (apostrophes in words stay), single spaces."""
    kept = re.sub(r"[^\w\s']|_", " ", text.casefold().replace("\u2019", "'"))
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


def word_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Errors of all answers by the words of all references, in percent (above 100 with many insertions)."""
    right = [normalise(text) for text in references]
    said = [normalise(text) for text in answers]
    return 100.0 * float(jiwer.wer(right, said))


def bleu(references: Sequence[str], answers: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu (13a tokens, case counts)."""
    return float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score)


def accuracy(references: Sequence[str], answers: Sequence[str]) -> float:
    """The share of equal pairs, in percent."""
    right = sum(a == b for a, b in zip(references, answers, strict=True))
    return 100.0 * right / len(references)


_SCORERS = {"wer": word_error_rate, "bleu": bleu, "acc": accuracy}
