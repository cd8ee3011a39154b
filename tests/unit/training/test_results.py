"""The whole page of results, on a toy model; what has not changed is not computed again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, new_mask_file
from training.analysis import experiments, results
from training.analysis.records import Records, sha256_of
from training.analysis.results_page import Results, page
from training.config import TrainConfig

MakeRecipe = Callable[..., TrainConfig]


@pytest.fixture
def recipe(toy_family: ModelFamily, toy_checkpoint: Path, make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    """A recipe file for the toy checkpoint, with its mask file."""
    config = make_recipe()
    head_mask = HeadMask.random(15, np.random.default_rng(9), (3, 8))
    new_mask_file(config.out, config.task, toy_family.identity, head_mask, {}).save(config.out)
    path, output = tmp_path / "gr.toml", '{kind = "label", labels = ["male", "female"]}'
    path.write_text(
        f"""
preset = "short"
checkpoint = "{toy_checkpoint}"
out = "{config.out}"
instruction = "What is said?"
task = {{name = "gr", title = "Gender", max_new_tokens = 4, output = {output}}}
data = {{train = "{config.data.train}", valid = "{config.data.valid}", test = "{config.data.test}"}}
optim = {{batch_size = 4}}
run = {{valid_every = 2}}
"""
    )
    return path


def make(recipe: Path, folder: Path, **options: Any) -> str:
    results.main(
        [recipe],
        out=folder / "results.md",
        scratch=folder / "runs",
        max_examples=4,
        num_resamples=10,
        seeds_task="gr",
        curve_tasks="gr",
        steps=2,
        num_threads=1,
        force=options.get("force", False),
    )
    return (folder / "results.md").read_text()


def test_the_page_is_made_from_records_and_only_what_changed_is_computed_again(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make(recipe, tmp_path)
    for title in (
        "The wording",
        "Random masks",
        "Seeds of gr",
        "in the order of their logits",
        "Sparsity of gr",
    ):
        assert title in text
    assert len(re.findall(r"\*\*(Reproduces|Does not reproduce)\*\*", text)) >= 6
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / target).is_file()
    stored = json.loads((tmp_path / "results" / "seeds-gr.json").read_text())
    assert [one["seed"] for one in stored["inputs"]["trainings"]] == [0, 1, 2]
    assert stored["inputs_sha256"] == sha256_of(stored["inputs"])
    origins = [
        wording["origin"]
        for wording in json.loads((tmp_path / "results" / "wordings-gr.json").read_text())["result"][
            "wordings"
        ]
    ]
    assert origins.count("seen") >= 1
    assert origins.count("unseen") == 8

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        for name in ("train", "evaluate", "assess", "overlap_record"):
            patched.setattr(experiments, name, never)
        assert make(recipe, tmp_path) == text
        with pytest.raises(AssertionError, match="computed again"):
            make(recipe, tmp_path, force=True)


def test_a_record_is_made_again_when_an_input_changes_or_it_is_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def compute() -> dict[str, Any]:
        made.append(1)
        return {"number": len(made), "pair": (1, 2)}

    records = Records(tmp_path)
    assert records.get("x", {"a": 1, "b": 2}, compute) == {"number": 1, "pair": [1, 2]}
    assert records.get("x", {"b": 2, "a": 1}, compute)["number"] == 1
    assert records.get("x", {"a": 2, "b": 2}, compute)["number"] == 2
    (tmp_path / "x.json").write_text("{")
    assert records.get("x", {"a": 2, "b": 2}, compute)["number"] == 3
    assert Records(tmp_path, force=True).get("x", {"a": 2, "b": 2}, compute)["number"] == 4


def verdicts(**records: Any) -> dict[str, bool]:
    """What the page says of each finding, by the beginning of the sentence."""
    empty: dict[str, Any] = {"wordings": [], "random_masks": [], "seeds": [], "sparsity": [], "curves": []}
    found = page(
        Results(
            model="m",
            fingerprint="f",
            max_examples=4,
            label_tasks=("gr",),
            **{"overlap": None, **empty, **records},
        ),
        "results",
    )
    lines = re.findall(r"- \*\*(Reproduces|Does not reproduce)\*\*: (.*)", found)
    return {sentence: said == "Reproduces" for said, sentence in lines}


def seeds(scores: list[float], common: float, share: float) -> dict[str, Any]:
    named = {f"seed {number}": {"ifr": 100.0, "acc": value} for number, value in enumerate(scores)}
    pair = {
        "names": ["a", "b"],
        "num_differing": 3,
        "share_differing": share,
        "jaccard": 0.5,
        "by_chance": 0.5,
    }
    return {
        "task": "gr",
        "pairs": [pair],
        "num_in_all": 7,
        "scores": {**named, "all in common": {"ifr": 100.0, "acc": common}},
    }


def test_verdicts_follow_the_numbers() -> None:
    good = verdicts(seeds=[seeds([98.0, 98.5], 97.5, 0.3)])
    assert [good[key] for key in good if key.startswith(("masks from", "their inter"))] == [True, True]
    apart = verdicts(seeds=[seeds([98.0, 60.0], 50.0, 0.3)])
    assert [apart[key] for key in apart if key.startswith(("masks from", "their inter"))] == [False, False]

    alike = verdicts(seeds=[seeds([98.0, 98.0], 98.0, 0.03)])
    assert [alike[key] for key in alike if key.startswith(("masks from", "their inter"))] == [False, False]

    def sparsity(*sizes: int) -> dict[str, Any]:
        points = [{"lambda": 0.1, "num_active": size, "metrics": {"acc": 90.0}} for size in sizes]
        return {"task": "gr", "num_heads": 24, "points": points}

    fewer = verdicts(sparsity=[sparsity(20, 15, 15, 3)])
    more = verdicts(sparsity=[sparsity(20, 21, 15, 3)])
    assert [said for key, said in fewer.items() if key.startswith("a larger lambda")] == [True]
    assert [said for key, said in more.items() if key.startswith("a larger lambda")] == [False]
