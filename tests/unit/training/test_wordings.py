from __future__ import annotations

from pathlib import Path

import pytest

from training.config import load_config
from training.errors import ConfigError
from training.wordings import edited, load_wordings, wordings_of

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.toml"))


def test_every_recipe_has_at_least_eight_more_wordings() -> None:
    listed = load_wordings()
    assert RECIPES
    for path in RECIPES:
        config = load_config(path)
        more = set(listed[config.task.name]) - set(config.all_instructions)
        assert len(more) >= 8, path.name


def test_edits_change_case_punctuation_politeness_and_order() -> None:
    found = {wording.origin: wording.text for wording in edited("Is the speaker male or female?")}
    assert found == {
        "case: lower": "is the speaker male or female?",
        "case: upper": "IS THE SPEAKER MALE OR FEMALE?",
        "punctuation: none": "Is the speaker male or female",
        "punctuation: strong": "Is the speaker male or female??",
        "politeness: please": "Please tell me: is the speaker male or female?",
        "politeness: question": "Could you tell me: is the speaker male or female?",
        "politeness: thanks": "Is the speaker male or female? Thank you.",
        "order: swapped": "Is the speaker female or male?",
        "order: recording first": "For this recording: is the speaker male or female?",
    }


def test_an_imperative_is_asked_politely_and_sentences_are_swapped() -> None:
    found = {wording.origin: wording.text for wording in edited("Listen. Transcribe the speech.")}
    assert found["politeness: question"] == "Could you listen. Transcribe the speech, please?"
    assert found["order: swapped"] == "Transcribe the speech. Listen."
    assert "order: swapped" not in {wording.origin for wording in edited("Transcribe the speech.")}


def test_a_clause_after_then_is_not_moved_for_it_is_the_order_of_the_answer() -> None:
    text = "Transcribe the speech, then name the gender."
    assert all("then name the gender" in wording.text.lower() for wording in edited(text))


def test_each_text_is_tried_once_and_the_recipes_own_come_first() -> None:
    tried = wordings_of(["Go.", "Do it."], ["Do it.", "go."])
    assert [(one.text, one.origin) for one in tried[:3]] == [
        ("Go.", "recipe"),
        ("Do it.", "recipe"),
        ("go.", "list"),
    ]
    assert len({one.text for one in tried}) == len(tried)
    assert len(wordings_of(["Go."], [], edits=False)) == 1


@pytest.mark.parametrize(("text", "said"), [("asr = 3", "no"), ("asr = []", "no"), ("asr = [", "not TOML")])
def test_a_list_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_wordings(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_wordings(tmp_path / "none.toml")
