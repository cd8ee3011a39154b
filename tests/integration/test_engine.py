"""The engine's promise: an answer is the same alone, in any company, and from plain Hugging Face generate."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from lalm.families import load_family
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from service.inference.engine import EngineRequest, RowRequest
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
from tests.toy import write_toy_checkpoint


def answers_alone(family: ModelFamily, requests: list[EngineRequest]) -> list[list[list[int]]]:
    """The tokens of every row of every request, one row at a time in a single slot."""

    async def ask_all() -> list[list[list[int]]]:
        return [
            [
                (await engine.submit(EngineRequest(request.request_id, request.audio, [row])))
                .rows[0]
                .token_ids
                for row in request.rows
            ]
            for request in requests
        ]

    with running_engine(family, max_slots=1) as engine:
        return asyncio.run(ask_all())


def answers_staggered(
    family: ModelFamily, requests: list[EngineRequest], max_slots: int = 16, forward: str = "packed"
) -> tuple[list[list[list[int]]], Leash]:
    """The same, each request two decode steps after the one before."""
    leash = Leash()

    async def ask_all() -> list[list[list[int]]]:
        answers = []
        for request in requests:
            answers.append(asyncio.create_task(engine.submit(request)))
            await leash.decode_steps(2)
        leash.let_go()
        return [[row.token_ids for row in (await answer).rows] for answer in answers]

    with running_engine(family, leash, max_slots=max_slots, **FORWARDS[forward]) as engine:
        return asyncio.run(ask_all()), leash


def mixed_requests(family: ModelFamily) -> list[EngineRequest]:
    """Clips of many lengths, one and two of them, masks of many sizes, no mask, and an instruction."""
    total = family.identity.num_layers * family.identity.num_heads

    def row(seed: int, num_active: int, n: int = 24) -> RowRequest:
        return make_row(random_mask(family, seed, num_active), task=f"task-{seed}", n=n)

    return [
        make_request(family, 2.0, row(1, total // 2), seed=1),
        make_request(family, 0.3, row(2, total - 1), row(3, total // 3), make_row(None), seed=2),
        make_request(family, 4.1, make_row(None, instruction="What is said?"), row(4, 3, n=40), seed=3),
        make_request(family, [1.0, 2.6], row(5, total // 2), seed=4),
        make_request(family, 1.2, row(6, total // 4, n=1), row(7, total // 2, n=2), seed=5),
        make_request(family, 6.0, make_row(random_mask(family, 8), instruction="Male or female?"), seed=6),
    ]


@pytest.fixture(scope="module")
def sliding_family(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    """Three layers, the last two of which see 20 positions only."""
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "sliding")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    }
    path.write_text(json.dumps(config))
    family = load_family(folder)
    assert family.decoder.config.sliding_window == 20
    return family


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("max_slots", [16, 3])
def test_a_mixed_batch_gives_the_tokens_of_each_alone_and_of_generate(
    toy_family: ModelFamily, max_slots: int, forward: str
) -> None:
    requests = mixed_requests(toy_family)
    expected = [[reference(toy_family, request, row) for row in request.rows] for request in requests]

    together, leash = answers_staggered(toy_family, requests, max_slots, forward)

    assert together == expected
    assert answers_alone(toy_family, requests) == expected
    assert max(leash.decoded) >= 3, "the rows were never in one batch"
    lengths = {len(row) for rows in expected for row in rows}
    assert len(lengths) >= 3
    assert len({tuple(row) for rows in expected for row in rows}) == sum(len(rows) for rows in expected)


def test_a_sliding_window_is_kept(sliding_family: ModelFamily, toy_family: ModelFamily) -> None:
    requests = mixed_requests(sliding_family)
    expected = [[reference(sliding_family, request, row) for row in request.rows] for request in requests]
    assert answers_staggered(sliding_family, requests)[0] == expected
    assert expected != [[reference(toy_family, request, row) for row in request.rows] for request in requests]


def test_a_neighbours_mask_changes_nothing(toy_family: ModelFamily) -> None:
    mine = make_request(toy_family, 2.0, make_row(random_mask(toy_family, 1)), seed=1)
    seen = []
    for seed in range(2, 6):
        other = make_request(toy_family, 3.0, make_row(random_mask(toy_family, seed)), seed=2)
        (my_rows, other_rows), leash = answers_staggered(toy_family, [mine, other])
        assert 2 in leash.decoded
        seen.append((my_rows[0], tuple(other_rows[0])))
    assert all(row == seen[0][0] for row, _ in seen)
    assert len({other for _, other in seen}) > 1, "the neighbour's mask did not even change the neighbour"


def test_all_ones_is_the_plain_model(toy_family: ModelFamily) -> None:
    ones = HeadMask.ones(toy_family.identity.num_layers, toy_family.identity.num_heads)
    request = make_request(toy_family, 2.0, make_row(ones), make_row(None))
    ((with_ones, plain),) = answers_alone(toy_family, [request])
    assert with_ones == plain


@pytest.mark.parametrize("max_slots", [8, 1])
def test_the_audio_of_a_request_is_encoded_once(toy_family: ModelFamily, max_slots: int) -> None:
    leash = Leash()
    leash.let_go()
    rows = [make_row(random_mask(toy_family, seed), n=5) for seed in range(4)]
    request = make_request(toy_family, [1.0, 2.0], *rows)
    with running_engine(toy_family, leash, max_slots=max_slots, max_prefill_tokens=4096) as engine:
        result = asyncio.run(engine.submit(request))
    assert leash.encoded == [2]
    assert sum(leash.prefilled) == 4
    assert result.audio_tokens == sum(clip.num_audio_tokens for clip in request.audio)
    assert [row.token_ids for row in result.rows] == [reference(toy_family, request, row) for row in rows]


def test_requests_that_come_together_share_one_pass_of_the_encoder(toy_family: ModelFamily) -> None:
    leash = Leash()
    requests = [make_request(toy_family, 1.0 + seed, make_row(None, n=4), seed=seed) for seed in range(4)]

    async def ask() -> list[list[int]]:
        first = asyncio.create_task(engine.submit(requests[0]))
        await leash.decode_steps(1)
        others = [asyncio.create_task(engine.submit(request)) for request in requests[1:]]
        await leash.until(lambda: leash.queue == (3, 1))
        leash.let_go()
        return [(await answer).rows[0].token_ids for answer in (first, *others)]

    with running_engine(toy_family, leash) as engine:
        answers = asyncio.run(ask())
    assert leash.encoded == [1, 3]
    assert leash.prefilled == [1, 3]
    assert answers == [reference(toy_family, request, request.rows[0]) for request in requests]


def test_the_answer_stops_before_the_end_of_text_token(toy_family: ModelFamily) -> None:
    row = make_row(random_mask(toy_family, 1), n=12)
    request = make_request(toy_family, 2.0, row)
    full = reference(toy_family, request, row)
    assert len(full) == 12
    for end in (full[0], full[5]):
        family = FamilyWith(toy_family, eos_token_ids=frozenset({end}))
        with running_engine(family) as engine:
            (answer,) = asyncio.run(engine.submit(request)).rows
        assert answer.token_ids == full[: full.index(end)]
        assert answer.finish_reason == "stop"
        assert answer.text == toy_family.decode_tokens(answer.token_ids)
    with running_engine(toy_family) as engine:
        (answer,) = asyncio.run(engine.submit(request)).rows
    assert (answer.token_ids, answer.finish_reason) == (full, "length")


def test_stages_are_timed_and_reported(toy_family: ModelFamily) -> None:
    leash = Leash()
    leash.let_go()
    rows = [make_row(random_mask(toy_family, seed), task=f"task-{seed}") for seed in range(3)]
    with running_engine(toy_family, leash, max_slots=2) as engine:
        result = asyncio.run(engine.submit(make_request(toy_family, 1.0, *rows)))
        assert (engine.num_waiting, engine.num_running) == (0, 0)
    for row in result.rows:
        stages = dict(row.timings_ms)
        assert stages.pop("total") == pytest.approx(sum(stages.values()))
        assert list(stages) == ["queue", "encoder", "prefill", "decode"]
        assert min(stages["prefill"], stages["decode"]) > 0
    assert result.rows[2].timings_ms["queue"] > result.rows[0].timings_ms["queue"]
    assert sorted(sequence.task for sequence in leash.finished) == ["task-0", "task-1", "task-2"]
    assert leash.queue == (0, 0)
    assert {len(sequence.output_ids) for sequence in leash.finished} == {
        len(row.token_ids) for row in result.rows
    }


def test_layers_that_cannot_be_masked_are_refused(toy_family: ModelFamily, tmp_path: Path) -> None:
    family = load_family(write_toy_checkpoint(tmp_path / "chunked"))
    family.decoder.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ValueError, match="chunked_attention"), running_engine(family):
        pass


def test_grouped_and_plain_attention_heads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for num_layers, num_heads, num_kv_heads in ((2, 4, 4), (4, 16, 1)):
        folder = tmp_path / f"{num_layers}-{num_heads}-{num_kv_heads}"
        family = load_family(
            write_toy_checkpoint(
                folder, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_kv_heads
            )
        )
        masks = [HeadMask(rng.random((num_layers, num_heads)) < 0.7) for _ in range(3)]
        requests = [
            make_request(family, 1.0 + seed, make_row(mask), seed=seed) for seed, mask in enumerate(masks)
        ]
        expected = [[reference(family, request, request.rows[0])] for request in requests]
        for forward in FORWARDS:
            assert answers_staggered(family, requests, forward=forward)[0] == expected


def test_a_recording_that_comes_again_is_not_encoded_again(toy_family: ModelFamily) -> None:
    class Cache(Leash):
        outcomes: ClassVar[list[tuple[int, int]]] = []

        def on_audio_cache(self, num_hits: int, num_misses: int, num_bytes: int) -> None:
            assert num_bytes > 0
            self.outcomes.append((num_hits, num_misses))

    leash = Cache()
    leash.let_go()
    rows = [make_row(random_mask(toy_family, seed), n=6) for seed in range(3)]
    first = make_request(toy_family, [1.0, 1.5], rows[0], seed=1)
    again = make_request(toy_family, [1.0, 1.5], *rows[1:], seed=1)
    with running_engine(toy_family, leash) as engine:
        answers = [asyncio.run(engine.submit(request)) for request in (first, again)]
    assert leash.encoded == [2]
    assert leash.outcomes == [(0, 2), (2, 0)]
    assert [row.token_ids for answer in answers for row in answer.rows] == [
        reference(toy_family, first, row) for row in rows
    ]
