"""Drafts change no answer, whatever they guess; they save decode steps, and give probabilities."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import torch

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor
from lalm.task import OutputSpec
from service.inference.engine import Engine, EngineRequest, RowResult
from tests.engine_support import (
    FORWARDS,
    FamilyWith,
    Leash,
    make_request,
    make_row,
    random_mask,
    reference,
    running_engine,
)

LABELS = ["first", "second", "third"]
OUTPUT = OutputSpec.model_validate({"kind": "label", "labels": LABELS})
HOWEVER_IT_RUNS = pytest.mark.parametrize("forward", FORWARDS)


def ask(family: object, request: EngineRequest, forward: str = "packed") -> tuple[list[RowResult], int]:
    leash = Leash()
    leash.let_go()
    with running_engine(family, leash, **FORWARDS[forward]) as engine:
        rows = asyncio.run(engine.submit(request)).rows
    return rows, len(leash.decoded)


def guessing(family: ModelFamily, *guesses: list[int]) -> FamilyWith:
    """The family, spelling the labels as `guesses`."""
    return FamilyWith(family, encode_text=lambda text: guesses[LABELS.index(text)])


@pytest.fixture(scope="module")
def request_and_tokens(toy_family: ModelFamily) -> tuple[EngineRequest, list[int]]:
    row = dataclasses.replace(make_row(random_mask(toy_family, 1), n=12), output=OUTPUT, with_scores=True)
    request = make_request(toy_family, 2.0, row)
    return request, reference(toy_family, request, row)


@HOWEVER_IT_RUNS
@pytest.mark.parametrize("num_right", [0, 1, 2, 5, 11, 12])
def test_an_answer_is_the_same_however_far_a_guess_is_right(
    toy_family: ModelFamily, request_and_tokens: tuple[EngineRequest, list[int]], num_right: int, forward: str
) -> None:
    request, tokens = request_and_tokens
    wrong = next(token for token in range(100) if token not in tokens)
    guess = [*tokens[:num_right], *([wrong] * 2)]
    # The right one is not the first of the tree, so that its keys and values have to be moved.
    family = guessing(toy_family, [wrong, *tokens[:3]], guess, [*tokens[:1], wrong, wrong])
    ((answer,), num_steps) = ask(family, request, forward)
    assert answer.token_ids == tokens
    assert num_steps == max(0, 11 - max(num_right, 1))


@HOWEVER_IT_RUNS
def test_a_label_takes_no_decode_step(
    toy_family: ModelFamily, request_and_tokens: tuple[EngineRequest, list[int]], forward: str
) -> None:
    request, tokens = request_and_tokens
    end = tokens.index(next(token for token in tokens[2:] if token not in tokens[:2]))
    family = guessing(toy_family, [0], tokens[:end], [0, 1])
    family.eos_token_ids = frozenset({tokens[end]})
    ((answer,), num_steps) = ask(family, request, forward)
    assert (answer.token_ids, answer.finish_reason, num_steps) == (tokens[:end], "stop", 0)


@HOWEVER_IT_RUNS
def test_scores_are_the_probabilities_of_the_labels(
    toy_family: ModelFamily, request_and_tokens: tuple[EngineRequest, list[int]], forward: str
) -> None:
    request, tokens = request_and_tokens
    spellings = [tokens[:2], [*tokens[:1], 7, 8], [9]]
    ((answer,), _) = ask(guessing(toy_family, *spellings), request, forward)

    (row,) = request.rows
    gate = gate_tensor([row.head_mask], toy_family.identity.num_layers, toy_family.identity.num_heads)
    prompt = toy_family.embed_prompt(toy_family.embed_audio(request.audio))
    totals = []
    for spelling in spellings:
        ids = torch.tensor(spelling)
        inputs = torch.cat([prompt, toy_family.decoder.get_input_embeddings()(ids)])[None]
        with torch.no_grad():
            hidden = toy_family.decoder(inputs_embeds=inputs, use_cache=False, head_gate=gate)[0][0]
            log_probs = toy_family.lm_head(hidden[len(prompt) - 1 :]).log_softmax(-1)
        ends = log_probs[-1, list(toy_family.eos_token_ids)].logsumexp(0)
        totals.append(log_probs[torch.arange(len(ids)), ids].sum() + ends)
    expected = torch.stack(totals).softmax(0).tolist()

    assert answer.scores is not None
    assert list(answer.scores) == LABELS
    assert list(answer.scores.values()) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert sum(answer.scores.values()) == pytest.approx(1.0)


def test_scores_are_there_only_if_asked_for(
    toy_family: ModelFamily, request_and_tokens: tuple[EngineRequest, list[int]]
) -> None:
    request, tokens = request_and_tokens
    family = guessing(toy_family, tokens[:2], [7], [8])
    for change in ({"with_scores": False}, {"output": None}):
        rows = [dataclasses.replace(row, **change) for row in request.rows]
        ((answer,), _) = ask(family, EngineRequest("unasked", request.audio, rows))
        assert (answer.token_ids, answer.scores) == (tokens, None)


def test_drafts_of_many_rows_in_small_parts(toy_family: ModelFamily) -> None:
    rows = [
        dataclasses.replace(make_row(random_mask(toy_family, seed), n=3 + seed), output=OUTPUT)
        for seed in range(6)
    ]
    requests = [make_request(toy_family, 0.5 + 0.7 * seed, row, seed=seed) for seed, row in enumerate(rows)]
    expected = [reference(toy_family, request, row) for request, row in zip(requests, rows, strict=True)]
    family = guessing(toy_family, expected[0], expected[1][:2], expected[5])

    async def ask_all() -> list[list[int]]:
        answers = await asyncio.gather(*map(engine.submit, requests))
        return [answer.rows[0].token_ids for answer in answers]

    for max_prefill_tokens in (7, 30):
        with running_engine(family, max_slots=4, max_prefill_tokens=max_prefill_tokens) as engine:
            assert asyncio.run(ask_all()) == expected


MIDDLE = OutputSpec.model_validate(
    {"kind": "fields", "separator": "|", "fields": [{"name": "text"}, {"name": "label", "labels": LABELS}]}
)


def going_on(family: ModelFamily, *guesses: list[int]) -> FamilyWith:
    """The family, spelling the separator and each label as one of `guesses`."""
    texts = [f" | {label}" for label in LABELS]
    return FamilyWith(family, encode_text=lambda text: guesses[texts.index(text)] if text in texts else [])


def unique_place(tokens: list[int]) -> int:
    """Where a token stands in an answer that stands nowhere else in it, some others behind it."""
    return next(place for place in range(1, len(tokens) - 5) if tokens.count(tokens[place]) == 1)


@HOWEVER_IT_RUNS
@pytest.mark.parametrize("num_right", [0, 1, 3])
def test_an_answer_is_the_same_however_far_the_guess_of_its_middle_is_right(
    toy_family: ModelFamily, num_right: int, forward: str
) -> None:
    row = dataclasses.replace(make_row(random_mask(toy_family, 1), n=24), output=MIDDLE)
    request = make_request(toy_family, 2.0, row)
    tokens = reference(toy_family, request, row)
    place = unique_place(tokens)
    first, behind = tokens[place], tokens[place + 1 : place + 1 + num_right]
    wrong = next(token for token in range(100) if token not in tokens)
    # The right one is not the first of the tree, so that its keys and values have to be moved.
    family = going_on(
        toy_family, [first, wrong, *behind], [first, *behind, wrong, wrong, wrong], [first, wrong]
    )
    ((answer,), num_steps) = ask(family, request, forward)
    assert answer.token_ids == tokens
    saved = num_right if forward == "packed" else 0
    assert num_steps == len(tokens) - 1 - saved


@HOWEVER_IT_RUNS
def test_guesses_of_the_middle_change_no_neighbour(toy_family: ModelFamily, forward: str) -> None:
    requests, expected = [], []
    for seed in range(4):
        rows = [
            dataclasses.replace(
                make_row(random_mask(toy_family, 5 * seed + number), n=14 + 3 * number),
                output=MIDDLE if number != 1 else None,
            )
            for number in range(3)
        ]
        requests.append(make_request(toy_family, 0.5 + seed, *rows, seed=seed))
        expected.append([reference(toy_family, requests[-1], row) for row in rows])
    answers = [tokens for rows in expected for tokens in rows]
    # Guesses out of the answers themselves, right in some rows and wrong in others.
    common = max(
        {token for tokens in answers for token in tokens}, key=lambda t: sum(t in a for a in answers)
    )
    ahead = [a[a.index(common) : a.index(common) + 4] for a in answers if common in a[:-1]]
    assert len(ahead) >= 3
    leash = Leash()

    async def ask_all(engine: Engine) -> list[list[list[int]]]:
        running = []
        for request in requests:
            running.append(asyncio.create_task(engine.submit(request)))
            await leash.decode_steps(2)
        leash.let_go()
        return [[row.token_ids for row in (await answer).rows] for answer in running]

    with running_engine(going_on(toy_family, *ahead[:3]), leash, **FORWARDS[forward]) as engine:
        assert asyncio.run(ask_all(engine)) == expected
    assert max(leash.decoded) > 3


def test_a_guess_does_not_go_beyond_the_longest_sequence(toy_family: ModelFamily) -> None:
    row = dataclasses.replace(make_row(random_mask(toy_family, 1), n=24), output=MIDDLE)
    request = make_request(toy_family, 2.0, row)
    tokens = reference(toy_family, request, row)
    place = unique_place(tokens)
    long = tokens[place : place + 6] * 4
    num_prompt_tokens = sum(map(len, toy_family.prompt_segments(None, 1))) + request.num_audio_tokens
    leash = Leash()
    leash.let_go()
    limits = {"max_sequence_tokens": num_prompt_tokens + row.max_new_tokens}
    with running_engine(going_on(toy_family, long, long, long), leash, **limits) as engine:
        (answer,) = asyncio.run(engine.submit(request)).rows
    assert answer.token_ids == tokens
    assert len(leash.decoded) == len(tokens) - 1
