from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from lalm import tiny
from lalm.families import load_family
from service.deltas import Deltas


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace").strip()


def told(*events: tuple[int, str | bytes | None]) -> list[str]:
    texts: list[str] = []
    deltas = Deltas(decode, texts.append)
    for piece, text in events:
        content = text.encode() if isinstance(text, str) else text
        for token in content if content is not None else [None]:
            deltas.on_token(piece, 0, token)
    return texts


def test_text_is_told_as_it_comes() -> None:
    assert told((0, "ab c"), (0, None)) == ["a", "b", " c"]


def test_a_character_in_parts_is_told_once_it_is_whole() -> None:
    assert told((0, "a\u00fc"), (0, None)) == ["a", "\u00fc"]


def test_what_stays_incomplete_is_told_at_the_end() -> None:
    assert told((0, b"a\xc3"), (0, None)) == ["a", "\ufffd"]


def test_a_later_piece_waits_for_the_one_before_it() -> None:
    texts = told((1, "two"), (0, "o"), (1, None), (0, "ne"), (0, None), (2, None))
    assert texts == ["o", "n", "e", " two"]


def test_an_empty_piece_leaves_no_space() -> None:
    assert told((0, None), (1, "a"), (1, None), (2, None), (3, "b"), (3, None)) == ["a", " b"]


@given(st.text(alphabet="ab \n\u00fc\u20ac\U0001f600"))
def test_all_that_is_told_is_the_answer(text: str) -> None:
    assert "".join(told((0, text), (0, None))) == text.strip()


def test_a_token_costs_the_same_wherever_it_stands() -> None:
    lengths: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return decode(ids)

    deltas = Deltas(counted, lambda text: None)
    for token in b"turn on the light in the kitchen":
        deltas.on_token(0, 0, token)
    assert max(lengths) <= 4


def test_the_tokens_of_the_embedded_model_join_to_its_text() -> None:
    family = load_family(str(tiny.CHECKPOINT))
    texts: list[str] = []
    deltas = Deltas(family.decode_tokens, texts.append)
    answer = '{"transcript": "schalte die kaffeemaschine f\u00fcr zw\u00f6lf uhr an", "gender": "male"}'
    for token in [*family.encode_text(answer), None]:
        deltas.on_token(0, 0, token)
    assert len(texts) > 10
    assert "".join(texts) == answer
