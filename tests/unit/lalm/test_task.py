"""Reading answers: tolerant of case and space, never of content; and the checks of a task."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lalm.task import OutputField, OutputKind, OutputSpec, TaskSpec

GENDER = {"name": "gender", "labels": ["male", "female"]}
TRANSCRIPT = {"name": "transcript"}


def task(output: dict[str, Any], **changes: Any) -> TaskSpec:
    content = {"name": "some-task", "title": "Some task", "output": output, "max_new_tokens": 32}
    return TaskSpec.model_validate(content | changes)


TEXT = task({"kind": "text"})
LABEL = task({"kind": "label", "labels": ["male", "female", "very Sad"]})
FIELDS = task({"kind": "fields", "separator": "|", "fields": [TRANSCRIPT, GENDER]})
JSON = task({"kind": "json", "fields": [TRANSCRIPT, GENDER]})
NOTHING = {"transcript": None, "gender": None}


@pytest.mark.parametrize(
    ("answer", "text"), [(" turn on the light ", "turn on the light"), ("", ""), (" \n", "")]
)
def test_text_is_the_answer_itself(answer: str, text: str) -> None:
    assert TEXT.parse(answer) == ({"text": text}, True)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("male", "male"),
        (" Male\n", "male"),
        ("FEMALE", "female"),
        ("VERY  sad", "very Sad"),
        ("male.", None),
        ("a male", None),
        ("male male", None),
        ("mal", None),
        ("", None),
    ],
)
def test_label_is_known_or_none(answer: str, label: str | None) -> None:
    assert LABEL.parse(answer) == ({"label": label}, label is not None)


@pytest.mark.parametrize(
    ("answer", "result", "format_ok"),
    [
        ("turn on the light | male", {"transcript": "turn on the light", "gender": "male"}, True),
        ("Turn on|FEMALE ", {"transcript": "Turn on", "gender": "female"}, True),
        ("turn on | robot", {"transcript": "turn on", "gender": None}, False),
        (" | male", {"transcript": None, "gender": "male"}, False),
        ("male | turn on", {"transcript": "male", "gender": None}, False),
        ("turn on", NOTHING, False),
        ("turn | on | male", NOTHING, False),
        ("turn on | male |", NOTHING, False),
        ("", NOTHING, False),
    ],
)
def test_fields_need_exactly_their_number_of_parts(
    answer: str, result: dict[str, str | None], format_ok: bool
) -> None:
    assert FIELDS.parse(answer) == (result, format_ok)


@pytest.mark.parametrize(
    ("answer", "result", "format_ok"),
    [
        ('{"transcript": "turn on", "gender": "male"}', {"transcript": "turn on", "gender": "male"}, True),
        (' {"gender":"MALE ","transcript":" a|b "}\n', {"transcript": "a|b", "gender": "male"}, True),
        ('{"Transcript": "on", " GENDER": "male"}', {"transcript": "on", "gender": "male"}, True),
        ('{"transcript": "on", "gender": "robot"}', {"transcript": "on", "gender": None}, False),
        ('{"transcript": "", "gender": "male"}', {"transcript": None, "gender": "male"}, False),
        ('{"transcript": "on"}', NOTHING, False),
        ('{"transcript": "on", "gender": "male", "age": "9"}', NOTHING, False),
        ('{"transcript": "on", "gender": "male", "gender": "male"}', NOTHING, False),
        ('{"transcript": "on", "gender": null}', NOTHING, False),
        ('{"transcript": ["on"], "gender": "male"}', NOTHING, False),
        ('{"transcript": {"a": "b"}, "gender": "male"}', NOTHING, False),
        ('[{"transcript": "on", "gender": "male"}]', NOTHING, False),
        ('[["transcript", "on"], ["gender", "male"]]', NOTHING, False),
        ('{"transcript": "on", "gender": "male"} {}', NOTHING, False),
        ('Here: {"transcript": "on", "gender": "male"}', NOTHING, False),
        ('{"transcript": "on", "gender": "male"', NOTHING, False),
        ("{'transcript': 'on', 'gender': 'male'}", NOTHING, False),
        ("{}", NOTHING, False),
        ("[" * 100_000, NOTHING, False),
        ('{"a":' * 100_000, NOTHING, False),
        ("", NOTHING, False),
    ],
)
def test_json_is_one_object_with_exactly_the_keys(
    answer: str, result: dict[str, str | None], format_ok: bool
) -> None:
    assert JSON.parse(answer) == (result, format_ok)


@given(st.text())
@pytest.mark.parametrize("spec", [TEXT, LABEL, FIELDS, JSON], ids=lambda spec: spec.output.kind)
def test_any_answer_can_be_read(spec: TaskSpec, answer: str) -> None:
    result, format_ok = spec.parse(answer)
    assert list(result) == [field.name for field in spec.output.result_fields]
    assert format_ok == (None not in result.values())


words = st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), min_size=1).filter(
    str.strip
)


@given(words, st.sampled_from(["male", "female"]))
def test_written_answers_are_read_back(transcript: str, gender: str) -> None:
    expected = ({"transcript": transcript.strip(), "gender": gender}, True)
    assert FIELDS.parse(f"{transcript} | {gender.upper()}") == expected
    assert JSON.parse(json.dumps({"gender": gender, "transcript": transcript})) == expected


def test_a_field_may_be_named_with_underscores_and_keeps_the_spelling_of_labels() -> None:
    field = OutputField(name="speaker_mood2", labels=("Très Heureux",))
    assert field.parse("  très   HEUREUX ") == "Très Heureux"


@pytest.mark.parametrize(
    ("output", "names"),
    [(TEXT.output, ["text"]), (LABEL.output, ["label"]), (JSON.output, ["transcript", "gender"])],
)
def test_result_fields_cover_every_kind(output: OutputSpec, names: list[str]) -> None:
    assert [field.name for field in output.result_fields] == names


@pytest.mark.parametrize("spec", [TEXT, LABEL, FIELDS, JSON], ids=lambda spec: spec.output.kind)
def test_a_task_survives_json_and_is_hashable(spec: TaskSpec) -> None:
    again = TaskSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert hash(again) == hash(spec)


def test_a_task_is_frozen() -> None:
    with pytest.raises(ValidationError):
        TEXT.max_new_tokens = 7


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"kind": "poem"}, "kind"),
        ({}, "kind"),
        ({"kind": "text", "labels": ["a"]}, "has no 'labels'"),
        ({"kind": "text", "tone": "warm"}, "tone"),
        ({"kind": "label"}, "needs 'labels'"),
        ({"kind": "label", "labels": []}, "label set is empty"),
        ({"kind": "label", "labels": ["a", "b", "a"]}, "'a' stands twice"),
        ({"kind": "label", "labels": ["very sad", "Very  Sad"]}, "stands twice"),
        ({"kind": "label", "labels": ["a", " "]}, "blank"),
        ({"kind": "label", "labels": ["a", " b"]}, "space around"),
        ({"kind": "label", "labels": ["a", 2]}, "labels"),
        ({"kind": "label", "labels": ["a"], "separator": "|"}, "has no 'separator'"),
        ({"kind": "label", "labels": ["a"], "fields": [TRANSCRIPT]}, "has no 'fields'"),
        ({"kind": "fields", "fields": [TRANSCRIPT, GENDER]}, "needs 'separator'"),
        ({"kind": "fields", "separator": "", "fields": [TRANSCRIPT, GENDER]}, "separator '' is blank"),
        ({"kind": "fields", "separator": " | ", "fields": [TRANSCRIPT, GENDER]}, "space around"),
        ({"kind": "fields", "separator": "|"}, "needs 'fields'"),
        ({"kind": "fields", "separator": "|", "fields": [TRANSCRIPT]}, "at least 2 fields"),
        (
            {"kind": "fields", "separator": "|", "fields": [TRANSCRIPT, TRANSCRIPT]},
            "'transcript' stands twice",
        ),
        ({"kind": "fields", "separator": "m", "fields": [TRANSCRIPT, GENDER]}, "contains the separator"),
        ({"kind": "json", "fields": []}, "at least 1 fields"),
        ({"kind": "json", "separator": "|", "fields": [TRANSCRIPT]}, "has no 'separator'"),
        ({"kind": "json", "fields": [{"name": "Gender"}]}, "name"),
        ({"kind": "json", "fields": [{"name": ""}]}, "name"),
        ({"kind": "json", "fields": [{"name": "gender", "labels": []}]}, "label set is empty"),
        ({"kind": "json", "fields": [{"name": "gender", "label": ["a"]}]}, "label"),
    ],
)
def test_output_that_cannot_be_meant_is_refused(output: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        task(output)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "ASR"},
        {"name": "a/b"},
        {"name": "-a"},
        {"name": "../asr"},
        {"name": "asr\n"},
        {"name": "a" * 65},
        {"title": " "},
        {"num_audios": 0},
        {"num_audios": 3},
        {"num_audios": "1"},
        {"num_audios": True},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": None},
        {"prompt": "please"},
    ],
    ids=str,
)
def test_a_task_with_a_bad_value_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        task({"kind": "text"}, **changes)
    assert next(iter(changes)) in str(refusal.value)


def test_a_pair_task_takes_two_recordings() -> None:
    spec = task({"kind": "label", "labels": ["same", "different"]}, num_audios=2)
    assert (spec.num_audios, spec.output.kind) == (2, OutputKind.LABEL)
