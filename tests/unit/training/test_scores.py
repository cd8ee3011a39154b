from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lalm.task import TaskSpec
from training.scores import goodness, is_main, measure, metric_title, score

GENDER = {"name": "gender", "labels": ["male", "female"]}
FIELDS = {"kind": "fields", "separator": "|", "fields": [{"name": "transcript"}, GENDER]}
JSON = {"kind": "json", "fields": [{"name": "transcript"}, GENDER]}


def task(output: dict[str, Any]) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", "title": "T", "output": output, "max_new_tokens": 9})


def test_word_error_rate_ignores_case_and_punctuation() -> None:
    asr = task({"kind": "text"})
    assert score(asr, ["Turn on, the light!", "stop"], ["turn on the light", "Stop."]) == {"wer": 0.0}
    assert score(asr, ["a b c", "d"], ["a x c", ""]) == {"wer": 50.0}


def test_errors_are_counted_over_the_corpus_not_averaged_over_sentences() -> None:
    assert (
        score(task({"kind": "text"}), ["a b c d e f g h i", "a"], ["a b c d e f g h i", "b"])["wer"] == 10.0
    )


def test_all_metrics_of_a_task_by_the_form_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.metrics.captions.meteor", lambda *_: None)  # seconds to start

    def names(output: dict[str, Any], reference: str, metric: Any = "wer") -> list[str]:
        return [one.name for one in measure(task(output), [[reference]], [reference], metric).measured]

    assert names({"kind": "text"}, "go") == ["wer", "cer"]
    assert names({"kind": "text"}, "go", "bleu") == ["bleu", "chrf"]
    assert names({"kind": "text"}, "go", "rouge") == ["rouge", "cider"]
    assert names({"kind": "label", "labels": ["male", "female"]}, "male") == ["ifr", "acc", "f1"]
    assert names(FIELDS, "go | male") == ["ifr", "wer", "cer", "acc", "f1"]


def test_the_main_metrics_are_the_same_in_both() -> None:
    references, answers = ["go home | male", "stop now | female"], ["go home | female", "stop | female"]
    scores = measure(task(FIELDS), [[text] for text in references], answers)
    main = {one.name: one.value for one in scores.measured if is_main(one.name)}
    assert main == score(task(FIELDS), references, answers)


def test_the_confusion_matrix_counts_answers_that_are_no_label() -> None:
    gr = task({"kind": "label", "labels": ["male", "female"]})
    scores = measure(gr, [["male"], ["male"], ["female"]], ["male", "a man", "male"])
    assert scores.confusions["label"].labels == ("male", "female")
    assert scores.confusions["label"].counts.tolist() == [[1, 0, 1], [1, 0, 0]]


def test_the_equal_error_rate_of_a_verification_task() -> None:
    asv = task({"kind": "label", "labels": ["yes", "no"]}).model_copy(update={"num_audios": 2})
    likely = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    scores = measure(asv, [["yes"], ["yes"], ["no"], ["no"]], ["yes", "no", "yes", "no"], "wer", likely)
    assert {one.name: one.value for one in scores.measured}["eer"] == pytest.approx(50.0)


def test_titles_say_which_way_is_better() -> None:
    assert metric_title("wer_transcript") == "WER transcript ↓"
    assert metric_title("rouge") == "ROUGE-L ↑"
    assert metric_title("eer") == "EER ↓"


def test_bleu_where_the_recipe_asks_for_it() -> None:
    s2tt, text = task({"kind": "text"}), "mach bitte das Licht an"
    assert score(s2tt, [text], [text], "bleu")["bleu"] == pytest.approx(100.0)
    assert score(s2tt, [text], ["turn it off now please"], "bleu")["bleu"] < 10.0


def test_a_label_is_right_or_wrong_whatever_its_case() -> None:
    gr = task({"kind": "label", "labels": ["male", "female"]})
    answers = ["Male", "female", "a woman", "female"]
    assert score(gr, ["male", "male", "female", "female"], answers) == {"ifr": 75.0, "acc": 50.0}


@pytest.mark.parametrize(
    ("output", "form", "broken"),
    [
        (FIELDS, "{} | {}", "go home, male"),
        (JSON, '{{"transcript": "{}", "gender": "{}"}}', '{"transcript": "go home"}'),
    ],
)
def test_parts_of_a_composite(output: dict[str, Any], form: str, broken: str) -> None:
    references = [form.format("go home", "male"), form.format("stop now", "female")]
    assert score(task(output), references, references) == {"ifr": 100.0, "wer": 0.0, "acc": 100.0}
    answers = [form.format("go home", "female"), form.format("stop it", "female")]
    assert score(task(output), references, answers) == {"ifr": 100.0, "wer": 25.0, "acc": 50.0}
    answers = [broken, references[1]]
    assert score(task(output), references, answers) == {"ifr": 50.0, "wer": 50.0, "acc": 50.0}


def test_a_right_part_of_an_answer_out_of_format_does_not_count() -> None:
    answers = ["go home | nobody"]
    assert score(task(FIELDS), ["go home | male"], answers) == {"ifr": 0.0, "wer": 100.0, "acc": 0.0}


def test_parts_of_the_same_kind_are_told_apart_by_name() -> None:
    both = {"kind": "json", "fields": [{"name": "first"}, {"name": "second"}]}
    answer = '{"first": "a", "second": "b"}'
    assert score(task(both), [answer], [answer]) == {"ifr": 100.0, "wer_first": 0.0, "wer_second": 0.0}


def test_goodness_turns_error_rates_round_and_bounds_them() -> None:
    assert goodness({"ifr": 90.0, "wer": 20.0, "acc": 70.0}) == pytest.approx(80.0)
    assert goodness({"wer_first": 250.0}) == 0.0


def test_nothing_to_score_is_an_error() -> None:
    for references, answers in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="references for"):
            score(task({"kind": "text"}), references, answers)
