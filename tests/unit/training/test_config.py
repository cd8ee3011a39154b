from __future__ import annotations

from pathlib import Path

import pytest

from training.config import OptimConfig, TrainConfig, load_config
from training.errors import ConfigError
from training.schedule import learning_rate
from training.tiny.records import TASKS

RECIPES = Path(__file__).parents[3] / "training" / "recipes"

RECIPE = """
preset = "short"
checkpoint = "somewhere"
out = "masks/gr.json"
instruction = "Who speaks?"
[task]
name = "gr"
title = "Gender"
max_new_tokens = 8
output = { kind = "label", labels = ["male", "female"] }
[data]
train = "train.jsonl"
valid = "valid.jsonl"
[optim]
steps = 10
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("task", TASKS)
def test_every_recipe_is_read_and_its_first_line_runs_it(task: str) -> None:
    path = RECIPES / f"{task}.toml"
    config = load_config(path)
    assert path.read_text().splitlines()[0] == f"# ahamask train training/recipes/{task}.toml"
    assert config.task.name == task
    assert config.out == Path(f"masks/tiny-lalm/{task}.json")
    assert config.all_instructions


def test_there_is_no_recipe_besides() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} == set(TASKS)


def test_the_short_preset_fills_what_the_recipe_leaves_open(tmp_path: Path) -> None:
    optim = load_config(write(tmp_path, RECIPE)).optim
    assert (optim.steps, optim.batch_size, optim.lr, optim.weight_decay) == (10, 16, 0.05, 0.0)
    assert (optim.init_mean, optim.tau_start, optim.tau_end, optim.tau_fraction) == (1.0, 4.0, 0.3, 0.7)
    assert (optim.loss, optim.sparsity_lambda, optim.lr_decay_fraction) == ("sample_sum", 1e-4, 0.2)


def test_the_paper_preset_is_the_published_configuration(tmp_path: Path) -> None:
    text = RECIPE.replace('"short"', '"paper"').replace("steps = 10\n", "")
    optim = load_config(write(tmp_path, text)).optim
    assert (optim.steps, optim.batch_size, optim.weight_decay, optim.betas) == (90_000, 8, 0.05, (0.9, 0.999))
    assert (optim.init_mean, optim.init_std) == (4.0, 0.02)
    assert (optim.tau_start, optim.tau_end, optim.tau_fraction) == (4.0, 0.05, 0.3)
    assert (optim.loss, optim.sparsity_lambda) == ("token_mean", 0.0)


def test_overrides_win_over_the_recipe(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, RECIPE), {"optim.steps": 3, "run.seed": 5})
    assert (config.optim.steps, config.run.seed) == (3, 5)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("steps = 10", "stepz = 10", "unknown key 'optim.stepz'"),
        ('preset = "short"', 'preset = "long"', "preset: Input should be 'paper' or 'short'"),
        ('preset = "short"', "", "key 'preset' is missing"),
        ("steps = 10", "steps = 0", "optim.steps:"),
        ('"masks/gr.json"', '"masks/asr.json"', "gr.json"),
        ('labels = ["male", "female"]', "labels = []", "task.output.labels: the label set is empty"),
        ('instruction = "Who speaks?"', 'instruction = "a"\ninstructions = ["b"]', "either"),
        ("steps = 10", "steps = 10\nsparsity_lambda = 0.0\ntarget_num_heads = 5", "has no effect"),
        ("steps = 10", "steps = 10\n[run]\nseeds = [1, 1]", "run: seeds: one is given twice"),
        ("steps = 10", "steps = 10\n[run]\npatience = 2\nkeep_best = false", "run: patience"),
        ("[data]", "[data", "not TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_and_reason(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    assert old in RECIPE
    path = write(tmp_path, RECIPE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_config(tmp_path / "none.toml")


def test_an_override_cannot_go_through_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preset is no section, preset\.x cannot be set"):
        load_config(write(tmp_path, RECIPE), {"preset.x": 1})


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config: TrainConfig = load_config(write(tmp_path, RECIPE))
    with pytest.raises(ValueError, match="frozen"):
        config.preset = "paper"  # type: ignore[misc]


def test_the_published_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    optim = OptimConfig()
    assert learning_rate(optim, 0) == 1e-6
    assert learning_rate(optim, 3_000) == pytest.approx(1e-2)
    assert learning_rate(optim, 46_500) == pytest.approx((1e-2 + 1e-4) / 2)
    assert learning_rate(optim, 89_999) == pytest.approx(1e-4, rel=1e-3)


def test_the_short_learning_rate_stays_and_falls_over_the_last_fifth(tmp_path: Path) -> None:
    optim = load_config(write(tmp_path, RECIPE)).optim
    rates = [learning_rate(optim, step) for step in range(10)]
    assert rates[:9] == [0.05] * 9
    assert rates[9] == pytest.approx(0.025)
