"""Drafts: the tree, what is accepted of it, and what tasks draft."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lalm.task import OutputSpec
from service.inference.chunk import Chunk
from service.inference.draft import AnswerDrafts, Draft, Drafts, continuations_of, draft_of

TOKENS = st.integers(0, 3)
TEXTS = st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=1, max_size=5)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@given(texts=TEXTS, answer=st.lists(TOKENS, min_size=6, max_size=6), data=st.data())
def test_what_is_accepted_is_the_greedy_answer(
    texts: list[list[int]], answer: list[int], data: st.DataObject
) -> None:
    """`answer` is what the model says token by token; off its path the model says anything."""
    draft = Draft.of_texts(texts)
    likeliest = [answer[0]]
    for node in range(len(draft)):
        spelled = [draft.tokens[each] for each in draft.path(node)]
        follows = spelled == answer[: len(spelled)]
        likeliest.append(answer[len(spelled)] if follows else data.draw(TOKENS))

    nodes, tokens = draft.accept(likeliest)

    assert tokens == answer[: len(tokens)]
    assert [draft.tokens[node] for node in nodes] == tokens[:-1]
    longest = max((n for text in texts for n in range(5) if text[:n] == answer[:n]), default=0)
    assert len(nodes) == longest


@given(texts=TEXTS)
def test_every_text_is_a_path_and_nothing_stands_twice(texts: list[list[int]]) -> None:
    names = [str(number) for number in range(len(texts))]
    draft = Draft.of_texts(texts, names)
    for name, text in zip(names, texts, strict=True):
        assert [draft.tokens[node] for node in draft.path(draft.labels[name])] == text
    assert len(draft) == len({tuple(text[: n + 1]) for text in texts for n in range(len(text))})
    assert all(parent < node for node, parent in enumerate(draft.parents))


@given(texts=TEXTS, start=st.integers(0, 3), trunk=st.integers(1, 4))
def test_a_node_sees_the_prompt_and_its_path(texts: list[list[int]], start: int, trunk: int) -> None:
    draft = Draft.of_texts(texts)
    chunk = Chunk(0, start, trunk + len(draft), None, parents=tuple(draft.parents))
    prompt = start + trunk
    for row in range(trunk):
        assert chunk.visible[row].nonzero().flatten().tolist() == list(range(start + row + 1))
    for node in range(len(draft)):
        path = draft.path(node)
        seen = chunk.visible[trunk + node].nonzero().flatten().tolist()
        assert seen == [*range(prompt), *(prompt + each for each in path)]
        assert int(chunk.positions[trunk + node]) == prompt + len(path) - 1
    assert torch.equal(chunk.positions[:trunk], torch.arange(start, prompt))


LABELS = ["male", "female"]
GENDER = {"name": "gender", "labels": LABELS}
MOOD = {"name": "mood", "labels": ["sad", "happy"]}
TRANSCRIPT = {"name": "transcript"}


@pytest.mark.parametrize(
    ("output", "beginnings"),
    [
        ({"kind": "text"}, None),
        ({"kind": "label", "labels": LABELS}, LABELS),
        ({"kind": "fields", "separator": "|", "fields": [GENDER, TRANSCRIPT]}, ["male |", "female |"]),
        ({"kind": "fields", "separator": "|", "fields": [TRANSCRIPT, GENDER]}, None),
        ({"kind": "json", "fields": [TRANSCRIPT, GENDER]}, ['{"transcript": "']),
        ({"kind": "json", "fields": [GENDER]}, ['{"gender": "male"}', '{"gender": "female"}']),
        (
            {"kind": "fields", "separator": "|", "fields": [GENDER, MOOD]},
            ["male | sad", "male | happy", "female | sad", "female | happy"],
        ),
        (
            {"kind": "json", "fields": [GENDER, MOOD, TRANSCRIPT]},
            [
                f'{{"gender": "{gender}", "mood": "{mood}", "transcript": "'
                for gender in LABELS
                for mood in MOOD["labels"]
            ],
        ),
    ],
)
def test_the_form_of_a_task_says_how_answers_begin(output: object, beginnings: list[str] | None) -> None:
    draft = draft_of(OutputSpec.model_validate(output), letters, max_tokens=200)
    if beginnings is None:
        assert draft is None
        return
    assert draft is not None
    assert draft == Draft.of_texts([letters(text) for text in beginnings], list(draft.labels))
    assert list(draft.labels) == (LABELS if beginnings == LABELS else [])


def test_a_draft_goes_as_far_as_its_size_allows() -> None:
    output = OutputSpec.model_validate({"kind": "json", "fields": [GENDER, MOOD, TRANSCRIPT]})
    sizes = {len(draft_of(output, letters, max_tokens) or ()) for max_tokens in range(200)}
    first = '{"gender": "'
    both = [f'{first}{gender}", "mood": "' for gender in LABELS]
    one, two = (len(Draft.of_texts(map(letters, texts))) for texts in ([first], both))
    assert sorted(sizes)[:3] == [0, one, two]
    assert len(sizes) == 4


@pytest.mark.parametrize(
    ("output", "continuations"),
    [
        ({"kind": "text"}, []),
        ({"kind": "label", "labels": LABELS}, []),
        ({"kind": "fields", "separator": "|", "fields": [GENDER, TRANSCRIPT]}, []),
        ({"kind": "fields", "separator": "|", "fields": [TRANSCRIPT, GENDER]}, [" | male", " | female"]),
        (
            {"kind": "json", "fields": [TRANSCRIPT, GENDER]},
            ['", "gender": "male"}', '", "gender": "female"}'],
        ),
        ({"kind": "json", "fields": [GENDER, TRANSCRIPT]}, []),
        (
            {"kind": "json", "fields": [TRANSCRIPT, GENDER, {"name": "language"}]},
            ['", "gender": "male", "language": "', '", "gender": "female", "language": "', '"}'],
        ),
    ],
)
def test_the_form_of_a_task_says_what_is_fixed_in_the_middle_of_answers(
    output: object, continuations: list[str]
) -> None:
    found = continuations_of(OutputSpec.model_validate(output), letters, max_tokens=200)
    spelled = [letters(text.rstrip()) for text in continuations]
    expected: dict[int, list[list[int]]] = {}
    for first, *rest in spelled:
        expected.setdefault(first, []).append(rest)
    assert found == {first: Draft.of_texts(rests) for first, rests in expected.items()}


def test_a_continuation_goes_as_far_as_its_size_allows() -> None:
    output = OutputSpec.model_validate({"kind": "json", "fields": [TRANSCRIPT, GENDER]})
    sizes = {max_tokens: continuations_of(output, letters, max_tokens) for max_tokens in range(60)}
    literal = letters('", "gender": "')
    whole = Draft.of_texts([*literal[1:], *letters(label + '"}')] for label in LABELS)
    assert sizes[10] == {}
    assert sizes[20] == {literal[0]: Draft.of_texts([literal[1:]])}
    assert sizes[59] == {literal[0]: whole}


def test_a_form_is_spelled_once() -> None:
    spelled: list[str] = []

    def counted(text: str) -> list[int]:
        spelled.append(text)
        return letters(text)

    drafts, output = Drafts(counted), OutputSpec.model_validate({"kind": "label", "labels": LABELS})
    for max_tokens in (64, 64, 3, 64):
        assert drafts.of(output, max_tokens).beginning == draft_of(output, letters, max_tokens)
    assert [text for text in spelled if text] == LABELS * 2
    assert drafts.of(None, 64) == AnswerDrafts()


def test_many_labels_of_many_fields_are_not_all_spelled() -> None:
    fields = [{"name": f"f{n}", "labels": [f"{k}" for k in range(30)]} for n in range(9)]
    draft = draft_of(OutputSpec.model_validate({"kind": "json", "fields": fields}), letters)
    assert draft == Draft.of_texts([letters('{"f0": "')])


def test_no_draft_where_it_would_cost_more_than_it_saves() -> None:
    many = OutputSpec.model_validate({"kind": "label", "labels": [f"{n} label" for n in range(20)]})
    assert draft_of(many, letters) is None
    assert draft_of(many, letters, max_tokens=1000) is not None
    assert draft_of(many, lambda _text: [], max_tokens=1000) is None
    assert draft_of(None, letters) is None
