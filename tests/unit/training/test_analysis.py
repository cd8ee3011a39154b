from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from lalm.errors import HeadMaskError
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import TaskSpec
from tests.command_line import Cli
from training.analysis.curve import curve_record, draw_curves, head_counts, top_heads
from training.analysis.masks import NamedMask, load_masks, run_logits
from training.analysis.overlap import (
    draw_layers,
    draw_overlap,
    intersection,
    jaccard,
    jaccard_by_chance,
    overlap_record,
    seeds_record,
)
from training.bench import Bench, Plan
from training.config import TrainConfig
from training.errors import CheckpointError, ConfigError
from training.manifest import load_manifest

MakeRecipe = Callable[..., TrainConfig]


def named(name: str, *rows: str) -> NamedMask:
    return NamedMask(name, name, HeadMask.from_strings(rows))


def save_mask(path: Path, rows: list[str], digit: str = "0") -> None:
    MaskFile(
        task=TaskSpec.model_validate(
            {"name": path.stem, "title": "T", "output": {"kind": "text"}, "max_new_tokens": 4}
        ),
        model=ModelIdentity(
            family="qwen2_audio",
            name="toy",
            fingerprint="sha256:" + digit * 64,
            num_layers=len(rows),
            num_heads=len(rows[0]),
        ),
        heads=tuple(rows),
        training={},
        evaluation={},
    ).save(path)


def save_run(folder: Path, logits: list[list[float]]) -> None:
    folder.mkdir(parents=True)
    selected = {"step": 1, "value": 0.0, "logits": torch.tensor(logits)}
    torch.save({"selected": selected}, folder / "checkpoint.pt")


def test_overlap_is_the_share_of_common_heads() -> None:
    one, other = HeadMask.from_strings(["1100", "1000"]), HeadMask.from_strings(["0110", "1000"])
    assert jaccard(one, other) == 2 / 4
    assert jaccard(one, one) == 1.0


def test_overlap_by_chance_is_that_of_random_masks() -> None:
    rng = np.random.default_rng(0)
    drawn = [(HeadMask.random(300, rng, (4, 256)), HeadMask.random(700, rng, (4, 256))) for _ in range(30)]
    mean = np.mean([jaccard(one, other) for one, other in drawn])
    assert mean == pytest.approx(jaccard_by_chance(*drawn[0]), abs=0.01)


def test_masks_that_are_alike_stand_together() -> None:
    masks = [
        named("a", "11110000"),
        named("x", "00001111"),
        named("b", "11100000"),
        named("y", "00000111"),
    ]
    record = overlap_record(masks)
    order = [record["names"][at] for at in record["order"]]
    assert {*order[:2]} in ({"a", "b"}, {"x", "y"})
    assert record["jaccard"][0][2] == 0.75
    assert record["active_by_layer"][2] == [3]
    assert record["active_heads"] == [4, 4, 3, 3]


def test_seeds_are_compared_pair_by_pair() -> None:
    masks = [named("0", "1110"), named("1", "1101"), named("2", "1100")]
    record = seeds_record(masks)
    assert [pair["num_differing"] for pair in record["pairs"]] == [2, 1, 1]
    assert record["pairs"][0]["share_differing"] == 0.5
    assert (record["num_in_all"], record["num_in_any"]) == (2, 4)
    assert intersection(masks).to_strings() == ["1100"]


def test_masks_come_from_files_folders_and_runs(tmp_path: Path) -> None:
    save_mask(tmp_path / "masks" / "asr.json", ["1010"])
    save_mask(tmp_path / "masks" / "gr.json", ["1110"])
    save_run(tmp_path / "runs" / "gr", [[0.5, -1.0, 0.0, 2.0]])
    found = load_masks([tmp_path / "masks", tmp_path / "runs" / "gr"])
    assert [(mask.name, mask.task) for mask in found] == [
        ("asr", "asr"),
        ("gr (masks)", "gr"),
        ("gr (runs)", ""),
    ]
    assert found[2].head_mask.to_strings() == ["1011"]
    assert found[2].logits is not None
    (alone,) = load_masks([tmp_path / "masks" / "gr.json"])
    assert alone.name == "gr"


def test_masks_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no head mask in"):
        load_masks([tmp_path])
    save_mask(tmp_path / "a" / "asr.json", ["1010"])
    save_mask(tmp_path / "b" / "asr.json", ["1010"], digit="1")
    with pytest.raises(ConfigError, match="different models"):
        load_masks([tmp_path])
    (tmp_path / "b" / "asr.json").write_text("{}")
    with pytest.raises(HeadMaskError, match="format is None"):
        load_masks([tmp_path])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run_logits(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        run_logits(tmp_path)
    torch.save({"selected": None}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="kept no head mask yet"):
        run_logits(tmp_path)


def test_heads_are_activated_from_the_highest_logit_down() -> None:
    logits = np.array([[0.1, 3.0], [-2.0, 1.0]], dtype=np.float32)
    assert [top_heads(logits, count).to_strings() for count in (1, 2, 3)] == [
        ["01", "00"],
        ["01", "01"],
        ["11", "01"],
    ]
    counts = head_counts(600, 1024, 12)
    assert counts == sorted(set(counts))
    assert {600, 812, 1024} <= set(counts)
    assert min(counts) > 0


def test_a_curve_is_scored_at_each_number_of_heads(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    config = make_recipe()
    examples = load_manifest(config.data.valid, config.task).examples
    logits = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    with Progress(console=Console(stderr=True), disable=True) as progress:
        bench = Bench(config, toy_family, examples, progress)
        record = curve_record("gr", bench, logits, [6, 24])
        whole = bench.run(Plan("none"))
    assert record["counts"] == [6, 24]
    assert record["curves"]["logits"][1] == record["curves"]["random"][1] == whole.metrics
    assert record["metric"] == "acc"
    draw_curves([record], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_figures_are_the_same_from_the_same_numbers(tmp_path: Path) -> None:
    record = overlap_record(
        [named("a", "1100", "1111"), named("b", "1000", "0111"), named("c", "0011", "1000")]
    )
    for draw in (draw_overlap, draw_layers):
        first, again = tmp_path / "first.png", tmp_path / "again.png"
        draw(record, first)
        draw(record, again)
        assert first.read_bytes() == again.read_bytes()


def test_the_command_writes_numbers_and_figures(cli: Cli, tmp_path: Path) -> None:
    for seed in ("one", "two"):
        save_mask(
            tmp_path / "masks" / seed / "gr.json", ["1110", "0001"] if seed == "one" else ["1100", "1001"]
        )
    save_mask(tmp_path / "masks" / "asr.json", ["1111", "0001"])
    out = tmp_path / "out"
    code, text, err = cli("analyse", tmp_path / "masks", "--out", out)
    assert code == 0, err
    assert "## 2 masks of gr" in text
    assert "| gr (one), gr (two) | 2 (25.0 %) | 0.600 |" in text
    record = json.loads((out / "analysis.json").read_text())
    assert record["seeds"]["gr"]["num_in_all"] == 3
    assert {file.name for file in out.iterdir()} == {
        "analysis.json",
        "analysis.md",
        "layers.png",
        "overlap.png",
    }


def test_a_curve_needs_logits(cli: Cli, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    save_mask(tmp_path / "gr.json", ["1110"])
    recipe = Path(__file__).parents[3] / "training" / "recipes" / "gr.toml"
    code, _, err = cli("analyse", tmp_path / "gr.json", "--curve", recipe, "--out", tmp_path / "out")
    assert code == 1
    assert "name its run folder" in err
