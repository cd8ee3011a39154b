"""The command line where it needs no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ahamask
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import TaskSpec
from service.settings import Settings
from tests.command_line import Cli

REPOSITORY = Path(ahamask.__file__).parent
RECIPE = str(REPOSITORY / "training" / "recipes" / "gr.toml")
SHAPE = (3, 16)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A folder with a head mask for asr and one for gr."""
    for seed, (name, output) in enumerate(
        {"asr": {"kind": "text"}, "gr": {"kind": "label", "labels": ["male", "female"]}}.items()
    ):
        heads = HeadMask.random(20 + seed, np.random.default_rng(seed), SHAPE).to_strings()
        mask_file = MaskFile(
            task=TaskSpec.model_validate(
                {"name": name, "title": f"Task {name}", "output": output, "max_new_tokens": 8}
            ),
            model=ModelIdentity(
                family="qwen2_audio",
                name="toy",
                fingerprint="sha256:" + "0" * 64,
                num_layers=SHAPE[0],
                num_heads=SHAPE[1],
            ),
            heads=tuple(heads),
            training={"seed": seed},
            evaluation={"wer": 3.25, "split": "test"},
        )
        (tmp_path / "toy").mkdir(exist_ok=True)
        mask_file.save(tmp_path / "toy" / f"{name}.json")
    return tmp_path


def test_help_shows_every_command_and_the_exit_codes(cli: Cli) -> None:
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    for command in ("serve", "run", "masks", "train", "evaluate", "Exit codes"):
        assert command in out


def test_help_and_lists_load_no_torch(masks: Path) -> None:
    for arguments in (["--help"], ["run", "--help"], ["masks", "list", str(masks)]):
        program = (
            f"import sys, ahamask; sys.argv = ['ahamask', *{arguments!r}]; code = ahamask.main(); "
            "sys.exit(code or sum(name in sys.modules for name in ('torch', 'transformers', 'fastapi')))"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False)
        assert done.returncode == 0, arguments


def test_the_version_is_the_packages(cli: Cli) -> None:
    code, out, _ = cli("--version")
    assert code == 0
    assert out.startswith("ahamask 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sing"], "No such command 'sing'"),
        (["serve", "--prot", "1"], "No such option: --prot"),
        (["serve", "--port", "99999"], "AHAMASK_PORT"),
        (["serve", "--dtype", "int8"], "AHAMASK_DTYPE"),
        (["serve", "--quantize", "int3"], "AHAMASK_QUANTIZE"),
        (["run", "asr"], "Missing argument 'files'"),
        (["run", "asr", "/no/such.wav"], "'/no/such.wav' does not exist"),
        (["evaluate", RECIPE, "--split", "exam"], "'exam'"),
        (["evaluate", RECIPE, "--condition", "luck"], "mask, instruction, random, none"),
        (["evaluate", RECIPE, "--table", "--json"], "exclude each other"),
        (["train", RECIPE, "--set", "optim.steps"], "KEY=VALUE"),
        (["masks", "show", "asr", "--masks", "/no/such"], "'/no/such' does not exist"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(cli: Cli, arguments: list[str], said: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("ahamask: ")
    assert err.count("\n") == 1


def test_a_wrong_variable_of_the_environment_is_wrong_usage(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHAMASK_MAX_SLOTS", "0")
    code, _, err = cli("serve")
    assert code == 2
    assert "AHAMASK_MAX_SLOTS" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--model", "/no/such/model"], "neither a folder nor a hub id"),
        (["masks", "verify", "--model", "/no/such/model"], "neither a folder nor a hub id"),
        (["train", RECIPE, "--set", "optim.stepz=3"], "unknown key 'optim.stepz'"),
        (["train", RECIPE, "--set", "data.train=none.jsonl", "--set", "checkpoint=/no/such"], "/no/such"),
    ],
)
def test_failure_is_exit_code_1_with_the_reason(cli: Cli, arguments: list[str], said: str) -> None:
    if arguments[0] == "serve":
        arguments = [*arguments, "--port", "0"]
    code, _, err = cli(*arguments)
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_options_of_serve_go_over_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []

    def serve(settings: Settings) -> int:
        served.append(settings)
        return 1

    monkeypatch.setattr("service.app.serve", serve)
    monkeypatch.setenv("AHAMASK_PORT", "9001")
    monkeypatch.setenv("AHAMASK_HOST", "0.0.0.0")
    code, _, _ = cli("serve", "--port", "9002", "--masks", "somewhere", "--dtype", "bfloat16")
    assert code == 1
    (settings,) = served
    assert (settings.port, settings.host, settings.dtype) == (9002, "0.0.0.0", "bfloat16")
    assert settings.masks_dir == Path("somewhere")


def test_an_interrupted_command_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.train.train", interrupted)
    assert cli("train", RECIPE) == (130, "", "ahamask: interrupted\n")


def test_a_reader_that_leaves_early_gets_no_traceback(masks: Path) -> None:
    program = "import sys, ahamask; sys.stdin.read(); sys.exit(ahamask.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "masks", "list", str(masks)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(b"")
    assert process.returncode == 1
    assert b"Traceback" not in err


def test_what_only_training_needs_may_be_missing() -> None:
    program = "import sys; sys.modules['jiwer'] = None; import ahamask; sys.exit(ahamask.main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", RECIPE], cwd=REPOSITORY, capture_output=True, check=False
    )
    said = b"ahamask: jiwer is not installed; pip install 'ahamask[train]' has it\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_an_unexpected_error_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("training.train.train", broken)
    with pytest.raises(ZeroDivisionError):
        cli("train", RECIPE)


def test_overrides_are_toml_values_and_otherwise_strings(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def train(config: Any, *, resume: bool) -> Path:
        seen.extend([config, resume])
        return Path("masks/gr.json")

    monkeypatch.setattr("training.train.train", train)
    settings = ["optim.steps=7", "run.tensorboard=true", "run.device=cuda:1", "optim.betas=[0.5, 0.6]"]
    code, out, _ = cli("train", RECIPE, "--resume", *(part for item in settings for part in ("--set", item)))
    assert (code, out) == (0, "masks/gr.json\n")
    config, resume = seen
    assert resume is True
    assert (config.optim.steps, config.optim.betas) == (7, (0.5, 0.6))
    assert (config.run.tensorboard, config.run.device) == (True, "cuda:1")


def test_masks_list_has_a_line_a_file(cli: Cli, masks: Path) -> None:
    code, out, _ = cli("masks", "list", masks)
    assert code == 0
    asr, gr = out.splitlines()
    assert asr.split() == ["toy", "asr", "20/48", "6", "B", str(masks / "toy" / "asr.json"), "Task", "asr"]
    assert gr.split()[1:3] == ["gr", "21/48"]


def test_masks_list_as_json(cli: Cli, masks: Path) -> None:
    _, out, _ = cli("masks", "list", masks, "--json")
    asr, gr = (json.loads(line) for line in out.splitlines())
    assert (asr["task"], asr["active_heads"], asr["num_heads"], asr["packed_bytes"]) == ("asr", 20, 48, 6)
    assert sum(gr["active_heads_by_layer"]) == 21


def test_masks_list_of_an_empty_folder_fails(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("masks", "list", tmp_path)
    assert code == 1
    assert "no mask file" in err


def test_masks_list_names_the_file_it_cannot_read(cli: Cli, masks: Path) -> None:
    (masks / "toy" / "ser.json").write_text("{}")
    code, _, err = cli("masks", "list", masks)
    assert code == 1
    assert f"{masks}/toy/ser.json: format is None" in err


def test_masks_show_draws_a_bar_a_layer(cli: Cli, masks: Path) -> None:
    code, out, _ = cli("masks", "show", "gr", "--masks", masks)
    assert code == 0
    assert "21 of 48 (43.8 %)" in out
    assert "6 bytes" in out
    assert "wer  3.25" in out
    heads = MaskFile.load(masks / "toy" / "gr.json").head_mask.heads
    bars = [line for line in out.splitlines() if "layer " in line and "[" in line]
    assert [bar.count("#") for bar in bars] == [int(row.sum()) for row in heads]
    assert cli("masks", "show", masks / "toy" / "gr.json") == (0, out, "")


def test_masks_show_as_json(cli: Cli, masks: Path) -> None:
    _, out, _ = cli("masks", "show", "asr", "--masks", masks, "--json")
    shown = json.loads(out)
    assert shown["sha256"] == MaskFile.load(masks / "toy" / "asr.json").head_mask.sha256
    assert shown["evaluation"] == {"wer": 3.25, "split": "test"}


def test_masks_show_says_what_there_is(cli: Cli, masks: Path) -> None:
    code, _, err = cli("masks", "show", "ser", "--masks", masks)
    assert code == 2
    assert "tasks: asr, gr" in err


def test_masks_show_wants_a_file_where_two_models_have_the_task(cli: Cli, masks: Path) -> None:
    (masks / "other").mkdir()
    (masks / "toy" / "asr.json").rename(masks / "other" / "gr.json")
    code, _, err = cli("masks", "show", "gr", "--masks", masks)
    assert code == 2
    assert f"{masks}/other/gr.json, {masks}/toy/gr.json" in err
