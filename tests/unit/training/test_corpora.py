"""Every corpus in miniature, in its real layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lalm.task import TaskSpec
from tests.command_line import Cli
from training.manifest import load_manifest

Rows = dict[str, list[dict[str, Any]]]

SPEAKERS = """\
; some lines of comment
;ID  |SEX| SUBSET           |MINUTES| NAME
14   | F | train-clean-360  | 25.03 | Kristin LeMoine
26   | M | dev-clean        | 30.11 | Denny Sayers
61   | M | test-clean       | 08.00 | John A. | B.
"""


@pytest.fixture
def prepared(cli: Cli, tmp_path: Path) -> Callable[..., Rows]:
    """Run `ahamask prepare`; the lines of every manifest by <split>/<task>."""

    def run(corpus: str, *options: str | Path) -> Rows:
        out = tmp_path / "manifests"
        code, printed, err = cli("prepare", corpus, tmp_path / "corpus", "--out", out, *options)
        assert code == 0, err
        rows = {
            str(path.relative_to(out).with_suffix("")): [json.loads(line) for line in path.open()]
            for path in sorted(out.rglob("*.jsonl"))
        }
        for name, lines in rows.items():
            assert f"{len(lines):>8}  {out}/{name}.jsonl\n" in printed
        return rows

    return run


@pytest.fixture
def refused(cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """Run `ahamask prepare` where it fails; what it says, in one line."""

    def run(corpus: str, *options: str | Path) -> str:
        code, _, err = cli("prepare", corpus, tmp_path / "corpus", "--out", tmp_path / "none", *options)
        assert code == 1
        assert not (tmp_path / "none").exists()
        said = err.strip().splitlines()[-1]
        assert said.startswith("ahamask: ")
        return said

    return run


def audio(path: Path, duration_s: float = 1.5, rate_hz: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.zeros(round(duration_s * rate_hz), dtype=np.float32)
    soundfile.write(path, samples, rate_hz)
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [Path(line["path"]).name for line in lines]


def librispeech(root: Path) -> None:
    text(root / "SPEAKERS.TXT", SPEAKERS)
    utterances = {
        ("train-clean-360", "14-208"): [
            "14-208-0000 TURN ON THE LIGHT",
            "14-208-0001 TOO LONG",
            "14-208-0002 IT'S",
        ],
        ("dev-clean", "26-495"): ["26-495-0000 HELLO THERE"],
        ("test-clean", "61-70968"): ["61-70968-0000 HE BEGAN"],
    }
    for (part, chapter), lines in utterances.items():
        folder = root / part / chapter.replace("-", "/")
        text(folder / f"{chapter}.trans.txt", "\n".join(lines) + "\n")
        for line in lines:
            audio(folder / f"{line.split()[0]}.flac", 31.0 if "LONG" in line else 1.5, 8_000)


def test_librispeech(prepared: Callable[..., Rows], tmp_path: Path) -> None:
    librispeech(tmp_path / "corpus" / "LibriSpeech")
    rows = prepared("librispeech")
    assert {name.split("/")[0] for name in rows} == {"train", "dev", "test-clean"}
    assert {name.split("/")[1] for name in rows} == {"asr", "gr", "asr-gr", "gr-asr", "asr-gr-json"}
    assert names(rows["train/asr"]) == ["14-208-0000.flac", "14-208-0002.flac"]  # 31 s are too long
    assert [line["text"] for line in rows["train/asr"]] == ["turn on the light", "it's"]
    assert rows["dev/gr"][0]["text"] == "male"
    assert rows["train/asr-gr"][0]["text"] == "turn on the light | female"
    assert json.loads(rows["test-clean/asr-gr-json"][0]["text"]) == {
        "transcript": "he began",
        "gender": "male",
    }
    task = TaskSpec.model_validate(
        {
            "name": "gr",
            "title": "Gender",
            "output": {"kind": "label", "labels": ["male", "female"]},
            "max_new_tokens": 4,
        }
    )
    manifest = load_manifest(tmp_path / "manifests" / "train" / "gr.jsonl", task)
    assert manifest.examples[0].waveforms(30.0)[0].size == 24_000


def test_librispeech_with_something_missing(refused: Callable[..., str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    assert "SPEAKERS.TXT: cannot be read" in refused("librispeech")
    text(corpus / "SPEAKERS.TXT", SPEAKERS)
    assert "no part of LibriSpeech here" in refused("librispeech")
    librispeech(corpus)
    text(corpus / "SPEAKERS.TXT", SPEAKERS.replace("61 ", "62 "))
    assert "no speaker 61 of" in refused("librispeech")
    librispeech(corpus)
    (corpus / "dev-clean/26/495/26-495-0000.flac").unlink()
    assert "26-495-0000.flac: missing, but" in refused("librispeech")
    text(corpus / "dev-clean/26/495/26-495-0000.flac", "no audio")
    assert "26-495-0000.flac: cannot be read" in refused("librispeech")


def iemocap(root: Path) -> None:
    for session in (1, 4, 5):
        dialog = f"Ses0{session}F_impro01"
        lines = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        for number, emotion in enumerate(("neu", "exc", "xxx", "fru", "ang", "sad")):
            name = f"{dialog}_M{number:03d}"
            lines += f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n"
            audio(root / f"Session{session}/sentences/wav/{dialog}/{name}.wav")
        text(root / f"Session{session}/dialog/EmoEvaluation/{dialog}.txt", lines)


def test_iemocap(prepared: Callable[..., Rows], refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    assert "no Session<1-5>/dialog/EmoEvaluation" in refused("iemocap")
    iemocap(tmp_path / "corpus" / "IEMOCAP_full_release")
    rows = prepared("iemocap")
    assert set(rows) == {"train/ser", "dev/ser", "test/ser"}
    assert [line["text"] for line in rows["test/ser"]] == ["neutral", "happy", "angry", "sad"]
    assert all("Ses05F" in name for name in names(rows["test/ser"]))
    next((tmp_path / "corpus").rglob("Ses04F_impro01_M001.wav")).unlink()
    assert "Ses04F_impro01_M001.wav: missing" in refused("iemocap")


def voxceleb1(root: Path) -> None:
    for speaker in ("id10270", "id10271"):
        for clip in ("x/00001", "y/00002"):
            audio(root / f"vox1_test_wav/wav/{speaker}/{clip}.wav")
    for number in range(1, 7):
        for clip in ("x/00001", "x/00002", "y/00001"):
            audio(root / f"vox1_dev_wav/wav/id1000{number}/{clip}.wav")
    text(
        root / "veri_test2.txt",
        "1 id10270/x/00001.wav id10270/y/00002.wav\n0 id10270/x/00001.wav id10271/y/00002.wav\n",
    )


def test_voxceleb1(prepared: Callable[..., Rows], tmp_path: Path) -> None:
    voxceleb1(tmp_path / "corpus")
    options = ("--train-pairs", "20", "--dev-pairs", "6")
    rows = prepared("voxceleb1", *options)
    assert {name: len(lines) for name, lines in rows.items()} == {
        "train/asv": 20,
        "dev/asv": 6,
        "test/asv": 2,
    }
    assert [line["text"] for line in rows["test/asv"]] == ["yes", "no"]
    speakers: dict[str, set[str]] = {}
    for name, lines in rows.items():
        for line in lines:
            one, other = ([*Path(path).parts[-3:-1]] for path in line["paths"])
            speakers.setdefault(name, set()).update((one[0], other[0]))
            assert (line["text"] == "yes") == (one[0] == other[0])
            assert line["text"] == "no" or one[1] != other[1]  # of two videos
    assert not speakers["train/asv"] & speakers["dev/asv"]
    assert not (speakers["train/asv"] | speakers["dev/asv"]) & speakers["test/asv"]
    assert [line["text"] for line in rows["train/asv"]].count("yes") == 10
    assert prepared("voxceleb1", *options) == rows


def test_voxceleb1_with_something_missing(refused: Callable[..., str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    assert "no list of trials here; looked for veri_test2.txt" in refused("voxceleb1")
    text(corpus / "veri_test.txt", "1 id10270/x/00001.wav\n")
    assert "no id*/*/*.wav here" in refused("voxceleb1")
    audio(corpus / "wav/id10270/x/00001.wav")
    assert "veri_test.txt:1: not of the form" in refused("voxceleb1")
    text(corpus / "veri_test.txt", "1 id10270/x/00001.wav id10270/y/00009.wav\n")
    assert "id10270/y/00009.wav: missing, but" in refused("voxceleb1")


def test_covost2_from_the_tables_of_its_script(prepared: Callable[..., Rows], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for split, clip in (("train", "a"), ("dev", "b"), ("test", "c")):
        audio(corpus / "clips" / f"common_voice_en_{clip}.mp3", rate_hz=48_000)
        row = f'common_voice_en_{clip}.mp3\tHe said "no".\tEr sagte "nein" ({clip}).\tabc\n'
        text(corpus / f"covost_v2.en_de.{split}.tsv", "path\tsentence\ttranslation\tclient_id\n" + row)
    rows = prepared("covost2")
    assert {name: lines[0]["text"] for name, lines in rows.items()} == {
        "train/s2tt": 'Er sagte "nein" (a).',
        "dev/s2tt": 'Er sagte "nein" (b).',
        "test/s2tt": 'Er sagte "nein" (c).',
    }


def test_covost2_from_the_release(
    prepared: Callable[..., Rows], refused: Callable[..., str], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    assert "no folder of clips here" in refused("covost2")
    for clip in ("a", "b"):
        audio(corpus / "en" / "clips" / f"{clip}.mp3", rate_hz=48_000)
    assert "neither covost_v2.en_ja.tsv nor" in refused("covost2", "--language", "ja")
    text(corpus / "covost_v2.en_ja.tsv", "path\ttranslation\na.mp3\tはい\n")
    assert "no column split" in refused("covost2", "--language", "ja")
    table = "path\ttranslation\tsplit\na.mp3\tはい\ttrain_covost\nb.mp3\tいいえ\ttest\nx.mp3\t-\tother\n"
    text(corpus / "covost_v2.en_ja.tsv", table)
    rows = prepared("covost2", "--language", "ja")
    assert {name: lines[0]["text"] for name, lines in rows.items()} == {
        "train/s2tt": "はい",
        "test/s2tt": "いいえ",
    }
    (corpus / "en" / "clips" / "b.mp3").unlink()
    assert "b.mp3: missing, but" in refused("covost2", "--language", "ja")


def test_audiocaps(prepared: Callable[..., Rows], refused: Callable[..., str], tmp_path: Path) -> None:
    corpus, header = tmp_path / "corpus", "audiocap_id,youtube_id,start_time,caption\n"
    corpus.mkdir()
    assert "no train.csv, val.csv, test.csv here" in refused("audiocaps")
    text(
        corpus / "dataset" / "train.csv",
        header + '1,abc,130,"A dog, barking"\n2,gone,0,Lost\n3,-x_y,30,Rain\n',
    )
    assert "none of the clips of" in refused("audiocaps")
    text(corpus / "dataset" / "test.csv", header + "4,def,10,Water runs\n5,def,10,A tap is on\n")
    for name in ("train/abc", "train/Y-x_y", "test/def_10"):
        audio(corpus / "audio" / f"{name}.wav", rate_hz=32_000)
    rows = prepared("audiocaps")
    assert [line["text"] for line in rows["train/aac"]] == ["A dog, barking", "Rain"]
    (clip,) = rows["test/aac"]
    assert (clip["text"], clip["references"]) == ("Water runs", ["A tap is on"])
    text(corpus / "dataset" / "train.csv", "id,caption\n1,A dog\n")
    assert "no column audiocap_id, start_time, youtube_id" in refused("audiocaps")


def test_libri2mix(prepared: Callable[..., Rows], refused: Callable[..., str], tmp_path: Path) -> None:
    librispeech(tmp_path / "LibriSpeech")
    texts = ("--librispeech", tmp_path)
    (tmp_path / "corpus").mkdir()
    assert "no Libri2Mix at 16 kHz here" in refused("libri2mix", *texts)
    mixtures = tmp_path / "corpus" / "Libri2Mix" / "wav16k" / "max"
    (mixtures / "metadata").mkdir(parents=True)
    assert "/mix_clean/*.wav here" in refused("libri2mix", *texts)
    audio(mixtures / "test" / "mix_clean" / "61-70968-0000_26-495-0000.wav")
    audio(mixtures / "train-100" / "mix_clean" / "14-208-0000_26-495-0000.wav")
    audio(mixtures / "test" / "s1" / "61-70968-0000_26-495-0000.wav")
    rows = prepared("libri2mix", *texts)
    assert {name: [line["text"] for line in lines] for name, lines in rows.items()} == {
        "train/osr": ["turn on the light | hello there"],
        "test/osr": ["he began | hello there"],
    }
    audio(mixtures / "test" / "mix_clean" / "61-70968-0000_99-1-0000.wav")
    assert "no transcript of 99-1-0000" in refused("libri2mix", *texts)
