"""Caption metrics, by the COCO caption tools: ROUGE-L, CIDEr-D and, where Java is installed, METEOR.

Texts are compared in lower case without punctuation. CIDEr-D weighs words by the references of all examples,
so a small set has other values than a large one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

import numpy as np

from training.metrics.measured import Measured, averaged

References = Sequence[Sequence[str]]


def rouge_l(references: References, answers: Sequence[str]) -> Measured:
    """The longest common subsequence as an F measure (beta 1.2), in percent."""
    from pycocoevalcap.rouge.rouge import Rouge

    _, scores = Rouge().compute_score(*_numbered(references, answers))
    return averaged("rouge", 100 * np.asarray(scores, dtype=np.float64))


def cider_d(references: References, answers: Sequence[str]) -> Measured:
    """Weighted n-gram similarity, clipped and with a length penalty, times 100 (not bounded by 100).

    A resample keeps the word weights of all examples.
    """
    from pycocoevalcap.cider.cider import Cider

    _, scores = Cider().compute_score(*_numbered(references, answers))
    return averaged("cider", 100 * np.asarray(scores, dtype=np.float64))


def meteor(references: References, answers: Sequence[str]) -> Measured | None:
    """METEOR 1.5 for English of the whole set, in percent; None where there is no Java."""
    if shutil.which("java") is None:
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    score, scores = Meteor().compute_score(*_numbered(references, answers))
    return Measured("meteor", 100 * float(score), None, 100 * np.asarray(scores, dtype=np.float64))


def plain(text: str) -> str:
    """Lower case, without punctuation (apostrophes in words stay), single spaces."""
    kept = re.sub(r"[^\w\s']|_", " ", text.casefold().replace("\u2019", "'"))
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


def _numbered(
    references: References, answers: Sequence[str]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    right = {number: [plain(text) for text in texts] for number, texts in enumerate(references)}
    return right, {number: [plain(answer)] for number, answer in enumerate(answers)}
