"""The command line on a small real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from service.app import create_app
from service.settings import Settings
from tests.command_line import Cli, command_line
from tests.mask_files import random_mask, write_mask_file
from tests.ready_client import ready_client
from tests.toy import toy_waveform

LABELS = ["male", "female"]
TASKS: dict[str, dict[str, Any]] = {
    "asr": {"output": {"kind": "text"}},
    "gr": {"output": {"kind": "label", "labels": LABELS}},
    "asv": {"output": {"kind": "label", "labels": ["yes", "no"]}, "num_audios": 2},
}


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy_checkpoint: Path, masks: Path
) -> Iterator[Cli]:
    """The command line with the toy model and its masks as settings of the environment."""
    with command_line(monkeypatch, capsys) as call:
        monkeypatch.setenv("AHAMASK_MODEL", str(toy_checkpoint))
        monkeypatch.setenv("AHAMASK_MASKS_DIR", str(masks))
        yield call


@pytest.fixture
def masks(tmp_path: Path, toy_family: ModelFamily) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    for seed, (name, spec) in enumerate(TASKS.items()):
        write_mask_file(folder, name, toy_family.identity, random_mask(18, (3, 8), seed), **spec)
    return folder


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    for seed, path in enumerate(paths):
        soundfile.write(path, toy_waveform(0.4 + 0.2 * seed, seed), 16_000)
    return paths


def test_run_gives_what_the_service_answers(
    cli: Cli, toy_checkpoint: Path, masks: Path, recordings: list[Path]
) -> None:
    app = create_app(Settings(model=str(toy_checkpoint), masks_dir=masks))
    expected = []
    with ready_client(app) as client:
        for recording in recordings:
            answer = client.post("/tasks/asr", files={"file": recording.read_bytes()}).json()
            keys = ("task", "text", "result", "format_ok")
            expected.append({**{key: answer[key] for key in keys}, "file": str(recording)})

    code, out, err = cli("run", "asr", "--json", *recordings)
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == expected
    assert len({answer["text"] for answer in expected}) > 1

    code, out, _ = cli("run", "asr", recordings[0])
    assert (code, out) == (0, expected[0]["text"] + "\n")
    code, out, _ = cli("run", "asr", *recordings[:2])
    assert out == "".join(f"{answer['file']}\t{answer['text']}\n" for answer in expected[:2])


def test_run_answers_the_others_when_a_file_is_bad(cli: Cli, tmp_path: Path, recordings: list[Path]) -> None:
    bad = tmp_path / "notes.txt"
    bad.write_text("no audio here")
    code, out, err = cli("run", "gr", "--json", recordings[0], bad, recordings[1])
    assert code == 1
    assert [json.loads(line)["file"] for line in out.splitlines()] == [
        str(recordings[0]),
        str(recordings[1]),
    ]
    assert err.startswith(f"ahamask: {bad}: ")
    assert err.count("\n") == 1


def test_run_takes_more_files_than_slots(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, recordings: list[Path]
) -> None:
    monkeypatch.setenv("AHAMASK_MAX_SLOTS", "2")
    monkeypatch.setenv("AHAMASK_MAX_WAITING", "0")
    code, out, err = cli("run", "gr", *recordings, *recordings)
    assert (code, err) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(path) for path in recordings] * 2


def test_tasks_on_two_recordings_take_pairs(cli: Cli, recordings: list[Path]) -> None:
    code, out, _ = cli("run", "asv", "--json", *recordings)
    assert code == 0
    first, second = (json.loads(line)["file"] for line in out.splitlines())
    assert first == [str(path) for path in recordings[:2]]
    assert second == [str(path) for path in recordings[2:]]

    code, out, err = cli("run", "asv", *recordings[:3])
    assert (code, out) == (2, "")
    assert "groups of 2, not 3" in err


def test_an_unknown_task_is_wrong_usage_and_the_known_ones_are_named(
    cli: Cli, recordings: list[Path]
) -> None:
    code, _, err = cli("run", "sing", recordings[0])
    assert code == 2
    assert "asr, asv, gr" in err


def test_verify_passes_the_masks_of_the_model(cli: Cli, masks: Path) -> None:
    code, out, _ = cli("masks", "verify")
    assert (code, out) == (0, "".join(f"{masks}/{name}.json: ok\n" for name in ("asr", "asv", "gr")))


def test_verify_names_every_bad_mask(cli: Cli, masks: Path) -> None:
    other = json.loads((masks / "asr.json").read_text())
    other["model"]["fingerprint"] = "sha256:" + "f" * 64
    (masks / "asr.json").write_text(json.dumps(other))
    (masks / "gr.json").write_text('{"format": "ahamask/9"}')
    code, out, _ = cli("masks", "verify", masks, "--json")
    assert code == 1
    asr, asv, gr = (json.loads(line) for line in out.splitlines())
    assert (asr["ok"], asv["ok"], gr["ok"]) == (False, True, False)
    assert "fingerprint" in asr["reason"]
    assert "ahamask/9" in gr["reason"]


def test_train_evaluate_verify_run(
    cli: Cli, tmp_path: Path, toy_checkpoint: Path, recordings: list[Path]
) -> None:
    lines = [
        json.dumps({"path": str(path), "text": LABELS[number % 2], "task": "gr"})
        for number, path in enumerate(recordings)
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    recipe, out_file = tmp_path / "gr.toml", tmp_path / "made" / "gr.json"
    recipe.write_text(f"""
        preset = "short"
        checkpoint = "{toy_checkpoint}"
        out = "{out_file}"
        instruction = "What is said?"
        [task]
        name = "gr"
        title = "Gender"
        max_new_tokens = 4
        [task.output]
        kind = "label"
        labels = ["male", "female"]
        [data]
        train = "{tmp_path}/all.jsonl"
        valid = "{tmp_path}/all.jsonl"
        test = "{tmp_path}/all.jsonl"
        [run]
        folder = "{tmp_path}/run"
    """)
    code, out, _ = cli("train", recipe, "--set", "optim.steps=2", "--set", "optim.batch_size=2")
    assert (code, out) == (0, f"{out_file}\n")
    assert cli("masks", "verify", out_file.parent)[0] == 0

    answers = tmp_path / "answers.jsonl"
    code, out, _ = cli("evaluate", recipe, "--num-random", "1", "--json", "--write", "--answers", answers)
    assert code == 0
    measured = json.loads(out)
    conditions = [run["condition"] for run in measured["runs"]]
    assert conditions == ["mask", "instruction", "random", "none"]
    assert len(answers.read_text().splitlines()) == 4 * len(recordings)
    assert MaskFile.load(out_file).evaluation["num_examples"] == len(recordings)

    code, out, _ = cli("evaluate", recipe, "--table", "--condition", "mask")
    assert code == 0
    assert out.startswith("| Task | Metric |")

    answered = [json.loads(line) for line in answers.read_text().splitlines()[: len(recordings)]]
    code, out, _ = cli("run", "gr", "--masks", out_file.parent, "--json", *recordings)
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == [line["answer"] for line in answered]
