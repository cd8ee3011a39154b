"""Word and character error rates, by jiwer, after Whisper's normalisation of English text.

Source of the normalisation: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision",
appendix C: no case, no punctuation, no fillers; contractions, spellings and numbers in one form.
"""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

from training.metrics.measured import Floats, Measured, summed


def error_rates(references: Sequence[str], answers: Sequence[str], *, characters: bool) -> list[Measured]:
    """`wer`, and `cer` on demand: errors of all answers by the length of all references, in percent.

    Above 100 with many insertions.
    """
    normalise = EnglishTextNormalizer()
    right = [normalise(text) for text in references]
    said = [normalise(text) for text in answers]
    measured = [_rate("wer", jiwer.process_words(right, said), [len(text.split()) for text in right])]
    if characters:
        measured.append(_rate("cer", jiwer.process_characters(right, said), [len(text) for text in right]))
    return measured


def _rate(name: str, output: jiwer.WordOutput | jiwer.CharacterOutput, lengths: list[int]) -> Measured:
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in output.alignments
    ]
    statistics = np.array([errors, lengths], dtype=np.float64).T
    return summed(name, statistics, _share, 100 * statistics[:, 0] / np.maximum(statistics[:, 1], 1))


def _share(sums: Floats) -> float:
    return float(100 * sums[0] / max(sums[1], 1))
