"""BLEU and chrF of a corpus, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from training.metrics.measured import Floats, Measured, summed

References = Sequence[Sequence[str]]


def bleu(references: References, answers: Sequence[str]) -> Measured:
    """Corpus BLEU (13a tokens, case counts); `references` has one or more texts an answer."""
    return _measured("bleu", BLEU(), BLEU(effective_order=True), references, answers)


def chrf(references: References, answers: Sequence[str]) -> Measured:
    """Corpus chrF2."""
    return _measured("chrf", CHRF(), CHRF(), references, answers)


def signatures(num_references: int) -> dict[str, str]:
    """What BLEU and chrF were computed with, in sacrebleu's own words."""
    texts = [["a"]] * num_references
    signed = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(["a"], texts)
        signed[name] = str(metric.get_signature())
    return signed


def _measured(
    name: str, metric: BLEU | CHRF, of_sentence: BLEU | CHRF, references: References, answers: Sequence[str]
) -> Measured:
    # Sums over sentences have no public name; sacrebleu's own bootstrap reads these, too.
    most = max(len(texts) for texts in references)
    columns: Any = [[texts[at] if at < len(texts) else None for texts in references] for at in range(most)]
    statistics = np.array(metric._extract_corpus_statistics(list(answers), columns), dtype=np.float64)

    def combine(sums: Floats) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score)

    pairs = zip(answers, references, strict=True)
    single = [of_sentence.sentence_score(answer, list(texts)).score for answer, texts in pairs]
    return summed(name, statistics, combine, np.array(single))
