from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lalm.audio_input import AudioInput
from lalm.task import TaskSpec
from training.errors import ManifestError
from training.manifest import load_manifest

GR = TaskSpec.model_validate(
    {
        "name": "gr",
        "title": "Gender",
        "output": {"kind": "label", "labels": ["male", "female"]},
        "max_new_tokens": 8,
    }
)
PAIR = GR.model_copy(update={"num_audios": 2})


def entry(**changes: Any) -> dict[str, Any]:
    return {"path": "a.wav", "text": "male", "task": "gr", **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.25)):
        soundfile.write(tmp_path / name, np.full(int(16_000 * seconds), 0.25, dtype=np.float32), 16_000)
    return tmp_path


def write_lines(folder: Path, *entries: Any) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in entries) + "\n\n")
    return path


def write_json(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(content, **options))
    return path


def test_both_forms_give_the_same_examples(folder: Path) -> None:
    entries = [entry(), entry(path="b.wav", text="female", Q="Who?")]
    lines = load_manifest(write_lines(folder, *entries), GR)
    for options in ({}, {"indent": 1}):
        json_form = load_manifest(write_json(folder, {"annotation": entries}, **options), GR)
        assert [(e.recordings, e.text, e.instruction) for e in json_form.examples] == [
            (e.recordings, e.text, e.instruction) for e in lines.examples
        ]
    assert lines.examples[0].recordings == ((folder / "a.wav",),)
    assert lines.examples[1].instruction == "Who?"


def test_the_digest_is_that_of_the_file(folder: Path) -> None:
    path = write_lines(folder, entry())
    assert load_manifest(path, GR).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_further_files_are_joined_with_a_tenth_of_a_second_of_silence(folder: Path) -> None:
    (example,) = load_manifest(write_lines(folder, entry(expand_wav=["b.wav"])), GR).examples
    (waveform,) = example.waveforms(30.0)
    assert waveform.size == 8_000 + 1_600 + 4_000
    assert not waveform[8_000:9_600].any()
    assert waveform[:8_000].all()


def test_a_pair_task_keeps_its_recordings_apart(folder: Path) -> None:
    (example,) = load_manifest(write_lines(folder, entry(expand_wav=["b.wav"])), PAIR).examples
    assert [waveform.size for waveform in example.waveforms(30.0)] == [8_000, 4_000]


def test_a_model_of_one_clip_takes_the_pair_joined_and_the_channel_it_hears(folder: Path) -> None:
    (example,) = load_manifest(write_lines(folder, entry(expand_wav=["b.wav"])), PAIR).examples
    left = np.full(8_000, 0.5)
    soundfile.write(folder / "a.wav", np.stack([left, -left], axis=1), 16_000)
    (waveform,) = example.waveforms(30.0, AudioInput(channel=0, joined=True))
    assert waveform.size == 8_000 + 1_600 + 4_000
    assert (waveform[:8_000] == 0.5).all()
    assert not waveform[8_000:9_600].any()


def test_a_pair_may_be_named_by_paths(folder: Path) -> None:
    pair = {"paths": ["a.wav", "b.wav"], "text": "male", "task": "gr"}
    (example,) = load_manifest(write_lines(folder, pair), PAIR).examples
    assert example.recordings == ((folder / "a.wav",), (folder / "b.wav",))
    with pytest.raises(ManifestError, match="needs 1 recordings, found 2"):
        load_manifest(write_lines(folder, pair), GR)


def test_further_right_answers_are_kept(folder: Path) -> None:
    (example,) = load_manifest(write_lines(folder, entry(references=["female"])), GR).examples
    assert example.references == ("male", "female")


def test_the_task_may_have_another_name_in_the_manifest(folder: Path) -> None:
    path = write_lines(folder, entry(task="gender_recognition"))
    assert len(load_manifest(path, GR, "gender_recognition").examples) == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (entry(text=" "), "text: is empty"),
        (entry(task="asr"), "unknown task 'asr'"),
        (entry(path="none.wav"), "there is no file"),
        (entry(expand_wav=["none.wav"]), "there is no file"),
        (entry(text="child"), "'child' is not an answer of task 'gr'"),
        (entry(speaker=3), "speaker:"),
        (entry(text=3), "text:"),
        ({"path": "a.wav", "task": "gr"}, "text: Field required"),
        ({"text": "male", "task": "gr"}, "either path or paths"),
        (entry(paths=["a.wav"]), "either path or paths"),
        ({"paths": ["a.wav"], "expand_wav": ["b.wav"], "text": "male", "task": "gr"}, "exclude each other"),
        (entry(references=["child"]), "'child' is not an answer"),
        ([1], "annotation:"),
    ],
)
def test_a_wrong_entry_is_named_by_its_line(folder: Path, wrong: Any, reason: str) -> None:
    for path, line in (
        (write_lines(folder, entry(), entry(), wrong), 3),
        (write_json(folder, {"annotation": [entry(), entry(), wrong]}), 1),
    ):
        with pytest.raises(ManifestError) as caught:
            load_manifest(path, GR)
        assert str(caught.value).startswith(f"{path}:{line}: ")
        assert reason in str(caught.value)


def test_an_indented_manifest_names_the_line_the_entry_starts_in(folder: Path) -> None:
    path = write_json(folder, {"annotation": [entry(), entry(task="x")]}, indent=1)
    line = [number for number, text in enumerate(path.read_text().splitlines(), 1) if text == "  {"][1]
    with pytest.raises(ManifestError) as caught:
        load_manifest(path, GR)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ('{"path": "a.wav", "text": "male", "task": "gr"}\n{"path"\n', ":2:", "not JSON"),
        ('{"annotation": [\n{"path": }]}', ":2:", "not JSON"),
        ('{"annotation": {}}', ":1:", "a list"),
        ('{"annotation": [], "more": 1}', ":1:", "annotation, more"),
        ('{"annotation": []}', ": ", "no annotation"),
        ("", ": ", "no annotation"),
    ],
)
def test_a_file_that_is_no_manifest(folder: Path, text: str, where: str, reason: str) -> None:
    path = folder / "m.json"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        load_manifest(path, GR)
    assert str(caught.value).startswith(f"{path}{where}")
    assert reason in str(caught.value)


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(folder / "none.jsonl", GR)
    (folder / "latin.jsonl").write_bytes(b"\n\xe4")
    with pytest.raises(ManifestError, match=r"latin\.jsonl:2: not UTF-8"):
        load_manifest(folder / "latin.jsonl", GR)


def test_a_pair_task_needs_two_recordings(folder: Path) -> None:
    for files in ([], ["b.wav", "b.wav"]):
        with pytest.raises(ManifestError, match="needs 2 recordings"):
            load_manifest(write_lines(folder, entry(expand_wav=files)), PAIR)


def test_audio_that_cannot_be_used_is_named_by_the_line(folder: Path) -> None:
    (folder / "text.wav").write_text("no audio")
    manifest = load_manifest(write_lines(folder, entry(), entry(path="text.wav")), GR)
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:2: .*text\.wav"):
        manifest.examples[1].waveforms(30.0)
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:1: "):
        manifest.examples[0].waveforms(0.4)


def test_joined_audio_counts_as_one_against_the_limit(folder: Path) -> None:
    (example,) = load_manifest(write_lines(folder, entry(expand_wav=["b.wav"])), GR).examples
    with pytest.raises(ManifestError, match=r"last 0\.8 s, 0\.6 s are allowed"):
        example.waveforms(0.6)
