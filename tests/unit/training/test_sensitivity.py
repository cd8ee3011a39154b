from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, new_mask_file
from tests.command_line import Cli
from training.analysis.assessment_report import draw, overview, page
from training.bench import Run
from training.config import TrainConfig
from training.errors import ConfigError
from training.evaluate import EvaluateOptions
from training.metrics.measured import averaged
from training.scores import Scores, measure
from training.sensitivity import Assessment, assess, assessment_record, widest_gap
from training.wordings import Wording

MakeRecipe = Callable[..., TrainConfig]

OPTIONS = EvaluateOptions(split="valid")
WORDINGS = [Wording(text, "list") for text in ("Who is it?", "male or female", "Say!")]


def run_of(right: list[bool]) -> Run:
    measured = tuple(averaged(name, 100.0 * np.array(right)) for name in ("ifr", "acc"))
    return Run("instruction", None, 24, Scores(measured, {}), ("male",) * len(right))


def assessment_of(config: TrainConfig, *runs: Run) -> Assessment:

    wordings = tuple(Wording(f"wording {number}", "list") for number in range(len(runs)))
    count = len(runs[0].answers)
    return Assessment(
        config.task, "test", count, "f" * 64, wordings, runs, None, widest_gap(runs, count, 200)
    )


def test_every_wording_is_answered_and_the_mask_where_there_is_one(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe()
    found = assess(config, WORDINGS, OPTIONS, family=toy_family, num_resamples=20)
    assert found.masked is None
    assert len({run.answers for run in found.runs}) > 1
    for run in found.runs:
        assert run.metrics.keys() == {"ifr", "acc", "f1"}

    head_mask = HeadMask.random(15, np.random.default_rng(9), (3, 8))
    new_mask_file(config.out, config.task, toy_family.identity, head_mask, {}).save(config.out)
    again = assess(config, WORDINGS, OPTIONS, family=toy_family, num_resamples=20)
    assert [run.answers for run in again.runs] == [run.answers for run in found.runs]
    assert again.masked is not None
    assert again.masked.num_active == 15


def test_wordings_are_ranked_and_a_spread_beyond_chance_is_suffering(make_recipe: MakeRecipe) -> None:
    good, fair, bad = [True] * 40, [True, True, True, False] * 10, [False] * 40
    found = assessment_of(make_recipe(), run_of(fair), run_of(bad), run_of(good))
    assert [wording.text for wording, _ in found.ranked] == ["wording 2", "wording 0", "wording 1"]
    assert (found.metric, found.spread, found.suffers) == ("acc", 100.0, True)

    record = assessment_record(found, 20)
    assert (record["best"], record["worst"], record["spread"]) == (100.0, 0.0, 100.0)
    assert record["mean"] == pytest.approx(175 / 3)
    low, high = record["wordings"][1]["intervals"]["ifr"]
    assert low < 75.0 < high
    json.dumps(record)


def test_wordings_that_differ_by_chance_do_not_count_as_suffering(make_recipe: MakeRecipe) -> None:
    rng = np.random.default_rng(1)
    runs = [run_of((rng.random(60) < 0.7).tolist()) for _ in range(6)]
    found = assessment_of(make_recipe(), *runs)
    assert found.spread >= 5.0
    assert found.suffers is False


def test_error_rates_are_better_when_lower(make_recipe: MakeRecipe) -> None:
    task = make_recipe().task.model_copy(
        update={"output": make_recipe().task.output.model_validate({"kind": "text"})}
    )
    references = [["one day"], ["a cat"], ["go home"], ["stop"]]
    runs = tuple(
        Run("instruction", None, 24, measure(task, references, answers), tuple(answers))
        for answers in (["a", "b", "c", "d"], ["one day", "a cat", "go home", "stop"])
    )
    wordings = (Wording("bad", "list"), Wording("good", "list"))
    found = Assessment(task, "test", 4, "f" * 64, wordings, runs, None, None)
    assert [wording.text for wording, _ in found.ranked] == ["good", "bad"]


def test_no_wording_is_an_error(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="no wording"):
        assess(make_recipe(), [], OPTIONS, family=toy_family)


def test_the_report_puts_the_task_that_suffers_most_first(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    steady = assessment_record(assessment_of(make_recipe(), run_of([True] * 8), run_of([True] * 8)), 20)
    moved = assessment_record(assessment_of(make_recipe(), run_of([True] * 8), run_of([False] * 8)), 20)
    moved["task"] = "ser"
    lines = overview([steady, moved]).splitlines()
    assert lines[2].startswith("| ser | ACC ↑ | 2 | 100.0 | 0.0 | 100.0 |")
    assert lines[3].endswith("| no |")
    assert "| wording 1 | list | 0.0 [0.0–0.0] | 0.0 [0.0–0.0] |" in page([steady, moved])
    draw([steady, moved], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_a_manifest(
    cli: Cli, toy_checkpoint: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    manifest = make_recipe().data.valid
    code, _, err = cli("assess", manifest)
    assert (code, "--model and --instruction" in err) == (2, True)

    out = tmp_path / "out"
    arguments = ["--model", toy_checkpoint, "--labels", "male,female", "--instruction", "What is said?"]
    arguments += ["--max-examples", "2", "--num-resamples", "20", "--out", out, "--json"]
    code, text, err = cli("assess", manifest, *arguments)
    assert code == 0, err
    (record,) = json.loads((out / "assessment.json").read_text())
    assert record == json.loads(text)
    origins = [wording["origin"] for wording in record["wordings"]]
    assert origins.count("recipe") == 1
    assert origins.count("list") == 8
    assert {origin.partition(":")[0] for origin in origins} >= {"case", "punctuation", "politeness", "order"}
    assert {file.name for file in out.iterdir()} == {"assessment.json", "assessment.md", "assessment.png"}
