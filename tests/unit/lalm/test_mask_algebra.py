from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask
from lalm.mask_algebra import Rule, combine, combine_files, overlap, random_file, scatter
from tests.mask_files import identity, mask_file, random_mask

A = HeadMask.from_strings(["1100", "1111"])
B = HeadMask.from_strings(["1010", "0000"])
C = HeadMask.from_strings(["1001", "1000"])


def test_overlap_counts_heads_a_layer() -> None:
    shared = overlap(A, B)
    assert shared.both.tolist() == [1, 0]
    assert shared.only_a.tolist() == [1, 4]
    assert shared.only_b.tolist() == [1, 0]
    assert shared.num_differing == 6
    assert shared.jaccard == 1 / 7
    assert overlap(A, A).jaccard == 1.0
    nothing = HeadMask(np.zeros((2, 4)))
    assert overlap(nothing, nothing).jaccard == 1.0


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        (Rule.AND, ["1000", "0000"]),
        (Rule.OR, ["1111", "1111"]),
        (Rule.MAJORITY, ["1000", "1000"]),
    ],
)
def test_combinations(rule: Rule, rows: list[str]) -> None:
    assert combine([A, B, C], rule).to_strings() == rows


def test_half_is_no_majority() -> None:
    assert combine([A, B], Rule.MAJORITY) == combine([A, B], Rule.AND)


@given(st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=5))
def test_a_majority_lies_between_intersection_and_union(numbers: list[int]) -> None:
    masks = [HeadMask.from_strings([f"{number:012b}"[:6], f"{number:012b}"[6:]]) for number in numbers]
    low, middle, high = (combine(masks, rule).heads for rule in (Rule.AND, Rule.MAJORITY, Rule.OR))
    assert not (low & ~middle).any()
    assert not (middle & ~high).any()


def test_masks_of_different_shapes_have_nothing_in_common() -> None:
    with pytest.raises(ValueError, match="one shape are needed, not 2 x 4, 3 x 4"):
        overlap(A, HeadMask.ones(3, 4))
    with pytest.raises(ValueError, match="not none"):
        combine([], Rule.AND)


def test_scattered_heads_are_as_many_and_elsewhere() -> None:
    mask = random_mask(20, (6, 8))
    drawn = {scatter(mask, np.random.default_rng(seed)) for seed in range(10)}
    assert len(drawn) == 10
    assert {other.num_active for other in drawn} == {20}
    by_layer = scatter(mask, np.random.default_rng(0), per_layer=True)
    assert by_layer != mask
    assert by_layer.heads.sum(axis=1).tolist() == mask.heads.sum(axis=1).tolist()


def test_combined_files_keep_the_first_task_and_say_what_they_are_of() -> None:
    first, second = mask_file("asr", A, kind="text"), mask_file("gr", B, kind="text")
    made = combine_files({Path("a.json"): first, Path("b.json"): second}, Rule.OR, Path("out/both.json"))
    assert made.head_mask == combine([A, B], Rule.OR)
    assert (made.task.name, made.task.title, made.model) == ("both", "asr", first.model)
    assert made.evaluation == {}
    assert made.training == {
        "combined": "or",
        "of": [{"file": "a.json", "sha256": A.sha256}, {"file": "b.json", "sha256": B.sha256}],
    }


def test_files_that_cannot_be_combined_are_refused() -> None:
    files = {Path("a.json"): mask_file("asr", A), Path("b.json"): mask_file("asr", B)}
    foreign = identity(2, 4, fingerprint="sha256:" + "1" * 64)
    with pytest.raises(HeadMaskError, match=r"c\.json: made for .* with fingerprint sha256:1"):
        combine_files(files | {Path("c.json"): mask_file("asr", C, foreign)}, Rule.AND, Path("x.json"))
    apart = HeadMask.from_strings(["0000", "0001"])
    with pytest.raises(HeadMaskError, match=r"x\.json: .*no head is active"):
        combine_files(files | {Path("c.json"): mask_file("asr", apart)}, Rule.AND, Path("x.json"))
    with pytest.raises(HeadMaskError, match=r"Not A Task\.json: name: "):
        combine_files(files, Rule.AND, Path("Not A Task.json"))


def test_a_random_file_says_how_it_was_drawn() -> None:
    like = mask_file("asr", random_mask(20))
    made = random_file(Path("asr.json"), like, Path("out/noise.json"), seed=3)
    assert made == random_file(Path("asr.json"), like, Path("out/noise.json"), seed=3)
    assert made.head_mask == scatter(like.head_mask, np.random.default_rng(3))
    assert (made.task.name, made.model, made.evaluation) == ("noise", like.model, {})
    assert made.training["seed"] == 3
    assert made.training["random_like"] == "asr.json"
