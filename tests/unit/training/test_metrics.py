"""Metrics against values worked out by hand, and their bootstrap."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import sacrebleu

from training.metrics.captions import cider_d, meteor, plain, rouge_l
from training.metrics.labels import accuracy, equal_error_rate, macro_f1
from training.metrics.measured import Measured, averaged, compare, interval, resamples, summed
from training.metrics.transcripts import error_rates
from training.metrics.translations import bleu, chrf, signatures

REFERENCES = [["mach das licht an"], ["rufe anna um drei uhr an"], ["spiele jazz in der küche"]]
ANSWERS = ["mach das licht aus", "rufe anna um drei uhr an", "spiele rock in der garage"]


def test_whispers_normalisation_knows_contractions_spellings_and_numbers() -> None:
    pairs = [
        ("I don't know the colour.", "i do not know the color"),
        ("twenty one percent", "21%"),
        ("uh, turn it on", "Turn it on!"),
    ]
    (wer,) = error_rates([a for a, _ in pairs], [b for _, b in pairs], characters=False)
    assert wer.value == 0.0


def test_error_rates_of_words_and_characters() -> None:
    wer, cer = error_rates(["the cat sat", "go"], ["the bat sat down", ""], characters=True)
    assert wer.value == pytest.approx(100 * 3 / 4)
    assert cer.value == pytest.approx(100 * (1 + 5 + 2) / 13)
    assert wer.per_example is not None
    assert wer.per_example.tolist() == pytest.approx([100 * 2 / 3, 100.0])


def test_a_reference_of_fillers_only_counts_insertions() -> None:
    (wer,) = error_rates(["uh", "one day"], ["oh no", "one day"], characters=False)
    assert wer.value == pytest.approx(100.0)


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    columns = [[texts[0] for texts in REFERENCES]]
    assert bleu(REFERENCES, ANSWERS).value == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, columns).score)
    assert chrf(REFERENCES, ANSWERS).value == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, columns).score)


def test_a_resample_of_bleu_is_the_bleu_of_its_sentences() -> None:
    measured = bleu(REFERENCES, ANSWERS)
    assert measured.resample is not None
    chosen = np.array([1, 1, 2])
    expected = sacrebleu.corpus_bleu([ANSWERS[i] for i in chosen], [[REFERENCES[i][0] for i in chosen]])
    assert measured.resample(chosen) == pytest.approx(expected.score)


def test_several_references_of_different_number() -> None:
    more = [["mach das licht an", "mach das licht aus"], *REFERENCES[1:]]
    assert bleu(more, ANSWERS).value > bleu(REFERENCES, ANSWERS).value
    assert rouge_l(more, ANSWERS).value > rouge_l(REFERENCES, ANSWERS).value


def test_signatures_name_what_matters() -> None:
    signed = signatures(1)
    assert signed["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nc:6|nw:0" in signed["chrf"]


def test_rouge_l_weighs_recall_a_little_more() -> None:
    measured = rouge_l([["a dog barks loudly"], ["rain falls"]], ["A dog barks.", "rain falls"])
    precision, recall = 1.0, 0.75
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert measured.per_example is not None
    assert measured.per_example.tolist() == pytest.approx([100 * expected, 100.0])


def test_cider_is_highest_for_the_reference_itself_and_nothing_for_another() -> None:
    references = [["a dog barks at night"], ["rain falls on a roof"], ["a siren wails far away"]]
    same = cider_d(references, [texts[0] for texts in references])
    assert same.value == pytest.approx(1000.0)
    turned = cider_d(references, ["rain falls on a roof", "a siren wails far away", "a dog barks at night"])
    assert turned.value < 50.0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")
def test_meteor_knows_stems_and_synonyms() -> None:
    references = [["a dog is barking"], ["rain falls"]]
    measured = meteor(references, ["a dog barks", "a siren wails"])
    assert measured is not None
    assert measured.per_example is not None
    assert measured.per_example[0] > 20.0 > 5.0 > measured.per_example[1]


def test_meteor_is_left_out_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert meteor([["a"]], ["a"]) is None


def test_punctuation_goes_and_apostrophes_inside_words_stay() -> None:
    assert plain("  Don\u2019t 'STOP'_now,  Über-alles! ") == "don't stop now über alles"


def test_macro_f1_is_the_mean_over_labels_that_occur() -> None:
    references, answers = ["a", "a", "a", "b"], ["a", "a", "b", None]
    assert macro_f1(("a", "b", "c"), references, answers).value == pytest.approx(100 * (0.8 + 0.0) / 2)
    assert accuracy(references, answers).value == 50.0


@pytest.mark.parametrize(
    ("targets", "others", "expected"),
    [
        ([3.0, 2.0, 4.0], [1.0, 0.0], 0.0),
        ([0.0, 1.0], [2.0, 3.0], 100.0),
        ([1.0, 1.0], [1.0, 1.0], 50.0),
        ([0.0, 2.0, 3.0, 4.0], [-1.0, -2.0, 1.0, -3.0], 25.0),
        ([0.5, 2.0, 3.0, 4.0], [-1.0, -2.0], 0.0),
    ],
)
def test_the_equal_error_rate(targets: list[float], others: list[float], expected: float) -> None:
    scores = np.array(targets + others)
    is_target = np.array([True] * len(targets) + [False] * len(others))
    assert equal_error_rate(scores, is_target).value == pytest.approx(expected)
    # which side is called the target does not matter
    assert equal_error_rate(-scores, ~is_target).value == pytest.approx(expected)


def test_an_interval_covers_the_value_and_narrows_with_more_examples() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for count in (40, 640):
        measured = averaged("acc", 100.0 * (rng.random(count) < 0.8))
        found = interval(measured, count)
        assert found is not None
        assert found.low < measured.value < found.high
        widths.append(found.high - found.low)
    # the binomial standard error is 6.3 and 1.6 points; a 95 % interval is about 3.9 of them wide
    assert widths[0] == pytest.approx(3.9 * 6.3, rel=0.3)
    assert widths[1] == pytest.approx(3.9 * 1.6, rel=0.3)


def test_a_ratio_of_sums_is_resampled_as_a_ratio_of_sums() -> None:
    measured = summed("wer", np.array([[1.0, 10.0], [1.0, 1.0]]), lambda sums: float(sums[0] / sums[1]))
    assert measured.value == pytest.approx(2 / 11)
    assert measured.resample is not None
    assert measured.resample(np.array([1, 1])) == pytest.approx(1.0)


def test_a_paired_comparison_sees_a_small_but_steady_difference() -> None:
    base = np.random.default_rng(0).normal(50.0, 20.0, size=200)
    better, same = averaged("x", base + 1.0), averaged("x", base.copy())
    steady = compare(better, averaged("x", base), 200)
    assert steady is not None
    assert (steady.difference, steady.p_value) == (pytest.approx(1.0), pytest.approx(2 / 1001))
    none = compare(same, averaged("x", base), 200)
    assert none is not None
    assert (none.difference, none.p_value) == (0.0, 1.0)


def test_what_cannot_be_resampled_has_no_interval() -> None:
    whole = Measured("meteor", 30.0)
    assert interval(whole, 5) is None
    assert compare(whole, whole, 5) is None


def test_resamples_are_the_same_every_time() -> None:
    first, again = (np.stack(list(resamples(7, 5))) for _ in range(2))
    assert (first == again).all()
    assert first.shape == (5, 7)
    assert set(first.ravel()) <= set(range(7))
