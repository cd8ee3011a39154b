from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile
from lalm.mask_algebra import overlap
from lalm.published_mask import from_mask_file, read_mask_logits, to_mask_file, write_mask_logits
from lalm.published_task import infer_task, is_complete, name_of, override, read_overrides
from lalm.task import OutputKind, TaskSpec
from tests.mask_files import identity, mask_file, random_mask

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "data" / "published-masks"
# active heads of 1,600, the feed-forward column dropped
ACTIVE_HEADS = {
    "asr": 1525,
    "s2tt": 1551,
    "osr": 1550,
    "aac": 1426,
    "asv": 1311,
    "gr": 1259,
    "ser": 1146,
    "gr-asr": 1315,
    "asr-gr": 837,
    "asr-gr-json": 1124,
}
JACCARD = {
    ("osr", "s2tt"): 0.944,
    ("osr", "asr"): 0.940,
    ("asr", "s2tt"): 0.940,
    ("asr", "gr"): 0.754,
    ("gr", "ser"): 0.636,
    ("asr-gr", "ser"): 0.484,
}
LOGITS = np.array([[0.0, -1e-9, 3.5, -9.0], [-0.25, 1e-3, -1e-3, 7.0]], dtype=np.float32)
ASR = TaskSpec.model_validate({"name": "asr", "title": "t", "output": {"kind": "text"}, "max_new_tokens": 8})


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def published(path: Path, logits: np.ndarray[Any, Any]) -> Path:
    """A file as the authors' code writes it: a flat tensor in a state dict."""
    tensor = torch.tensor(logits, dtype=torch.float32).reshape(-1)
    return write(path, {"model": OrderedDict(tensor=tensor)})


def test_a_head_is_active_from_half_on_and_the_last_column_is_dropped(tmp_path: Path) -> None:
    path = published(tmp_path / "asr_here" / "checkpoint.pth", LOGITS)
    imported = to_mask_file(path, ASR, identity(2, 3))
    assert imported.head_mask.to_strings() == ["111", "010"]
    assert imported.training["imported_from"] == "asr_here/checkpoint.pth"
    assert "mask_logits" not in imported.training


def test_kept_logits_are_exported_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = (8 * rng.standard_normal((5, 9))).astype(np.float32)
    logits[0, :2] = [0.0, -1e-9]
    path = published(tmp_path / "checkpoint.pth", logits)
    imported = to_mask_file(path, ASR, identity(5, 8), keep_logits=True)
    imported.save(tmp_path / "asr.json")
    loaded = MaskFile.load(tmp_path / "asr.json")
    write_mask_logits(tmp_path / "again.pth", from_mask_file(loaded, path))
    content = torch.load(tmp_path / "again.pth", weights_only=True)
    assert list(content) == ["model"]
    assert list(content["model"]) == ["tensor"]
    assert torch.equal(content["model"]["tensor"], torch.from_numpy(logits.reshape(-1)))


def test_heads_without_logits_go_out_and_come_back(tmp_path: Path) -> None:
    head_mask = random_mask(20, (5, 8))
    path = tmp_path / "out" / "checkpoint.pth"
    write_mask_logits(path, from_mask_file(mask_file("asr", head_mask), path))
    logits = read_mask_logits(path, 5, 8)
    assert set(np.unique(logits)) == {-4.0, 4.0}
    assert (logits[:, -1] == 4.0).all()
    assert to_mask_file(path, ASR, identity(5, 8)).head_mask == head_mask


@pytest.mark.parametrize("kept", [["1 2 3 4"], ["x"], [], 7, ["1 1 1 1", "1 1 1 1"]])
def test_kept_logits_that_are_not_those_of_the_heads_are_refused(kept: Any) -> None:
    head_mask = HeadMask.from_strings(["111", "010"])
    broken = mask_file("asr", head_mask).model_copy(update={"training": {"mask_logits": kept}})
    with pytest.raises(HeadMaskError, match="not the logits of its heads"):
        from_mask_file(broken, Path("asr.json"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": {"tensor": torch.zeros(9)}}, "has 9 logits, the model needs 8: 2 layers x"),
        ({"model": {"tensor": torch.zeros(6)}}, "has 6 logits"),
        ({"model": {"tensor": torch.tensor([1.0] * 7 + [torch.nan])}}, "not finite"),
        ({"model": {"tensor": torch.ones(8, dtype=torch.long)}}, "not a published mask"),
        ({"model": {"other": torch.zeros(8)}}, "not a published mask"),
        ({"model": torch.zeros(8)}, "not a published mask"),
        (torch.zeros(8), "not a published mask"),
        ({"model": {"tensor": torch.full((8,), -1.0)}}, "no head is active"),
    ],
)
def test_what_is_no_mask_for_the_model_is_refused(tmp_path: Path, content: Any, match: str) -> None:
    path = write(tmp_path / "checkpoint.pth", content)
    with pytest.raises(HeadMaskError, match=match) as caught:
        to_mask_file(path, ASR, identity(2, 3))
    assert "\n" not in str(caught.value)


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint.pth", {"model": Hostile(tmp_path / "was-run")})
    with pytest.raises(HeadMaskError, match="not a PyTorch file of tensors"):
        read_mask_logits(path, 2, 3)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 torn"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(HeadMaskError, match="not a PyTorch file of tensors"):
        read_mask_logits(path, 2, 3)


@pytest.mark.parametrize(
    ("name", "task", "kind", "answer"),
    [
        ("asr_librispeech", "asr", "text", ("hello", {"text": "hello"})),
        ("gender_librispeech", "gr", "label", ("Male", {"label": "male"})),
        ("emotion_iemocap", "ser", "label", ("Sad", {"label": "sad"})),
        ("asv_voxceleb1", "asv", "label", ("Yes", {"label": "yes"})),
        ("aac_audiocaps", "aac", "text", ("a dog barks", {"text": "a dog barks"})),
        ("osr_libri2mix", "osr", "text", ("one", {"text": "one"})),
        ("s2tt_covost2", "s2tt", "text", ("guten Tag", {"text": "guten Tag"})),
        ("asr_gender_librispeech", "asr-gr", "fields", ("hi|Male", {"transcript": "hi", "gender": "male"})),
        ("gender_asr_librispeech", "gr-asr", "fields", ("Male|hi", {"transcript": "hi", "gender": "male"})),
        (
            "asr_gender_json_librispeech",
            "asr-gr-json",
            "json",
            ('{"ASR": "hi", "GR": "Male"}', {"asr": "hi", "gr": "male"}),
        ),
        (
            "asr-gr-json",
            "asr-gr-json",
            "json",
            ('{"GR": "female", "ASR": "a"}', {"asr": "a", "gr": "female"}),
        ),
    ],
)
def test_the_task_is_told_from_the_name(
    name: str, task: str, kind: str, answer: tuple[str, dict[str, str]]
) -> None:
    spec = infer_task(name, Path("x"))
    assert (spec.name, spec.output.kind.value) == (task, kind)
    assert spec.num_audios == (2 if task == "asv" else 1)
    assert spec.parse(answer[0]) == (answer[1], True)


def test_names_that_tell_nothing_are_refused() -> None:
    for name in ("librispeech_asr", "", "json_asr"):
        with pytest.raises(HeadMaskError, match=r"tells no task; names begin with .*aac, asr"):
            infer_task(name, Path("x"))


def test_labels_replace_those_of_a_task_with_one_label() -> None:
    spec = infer_task("ser", Path("x"), ("calm", "upset"))
    assert spec.output.labels == ("calm", "upset")
    for name in ("asr", "asr_gender", "gender_json"):
        with pytest.raises(HeadMaskError, match="labels do not fit"):
            infer_task(name, Path("x"), ("calm", "upset"))
    with pytest.raises(HeadMaskError, match="stands twice"):
        infer_task("ser", Path("x"), ("calm", "Calm"))


def test_a_file_goes_by_its_own_name_unless_that_says_nothing(tmp_path: Path) -> None:
    assert name_of(tmp_path / "asr_librispeech" / "checkpoint.pth") == "asr_librispeech"
    assert name_of(tmp_path / "asr_librispeech" / "checkpoint_best.pth") == "asr_librispeech"
    assert name_of(tmp_path / "masks" / "gender_librispeech.pth") == "gender_librispeech"


def test_overrides_replace_keys_and_stand_alone(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text('[a]\ntitle = "T"\n[a.output]\nkind = "label"\nlabels = ["x", "y"]\n')
    keys = read_overrides(path)["a"]
    spec = override(infer_task("gender_x", path), keys, path)
    assert (spec.name, spec.title, spec.output.kind) == ("gr", "T", OutputKind.LABEL)
    assert spec.output.labels == ("x", "y")
    assert not is_complete(keys)
    whole = keys | {"name": "odd", "max_new_tokens": 4}
    assert is_complete(whole)
    assert override(None, whole, path).name == "odd"
    with pytest.raises(HeadMaskError, match="unknown key 'titel'"):
        override(spec, {"titel": "T"}, path)


@pytest.mark.parametrize(("text", "match"), [("= 1", "not TOML"), ("a = 1", "'a' is not a table")])
def test_overrides_that_cannot_be_read_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "tasks.toml"
    with pytest.raises(HeadMaskError, match="cannot be read"):
        read_overrides(path)
    path.write_text(text)
    with pytest.raises(HeadMaskError, match=match):
        read_overrides(path)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published masks are not here")
def test_the_published_masks_have_the_published_counts(tmp_path: Path) -> None:
    masks = {}
    for path in sorted(PUBLISHED.glob("*/*.pth")):
        task = infer_task(name_of(path), path)
        imported = to_mask_file(path, task, identity(40, 40), keep_logits=True)
        masks[task.name] = imported.head_mask
        write_mask_logits(tmp_path / "out.pth", from_mask_file(imported, path))
        given, written = (torch.load(file, weights_only=True) for file in (path, tmp_path / "out.pth"))
        assert torch.equal(given["model"]["tensor"], written["model"]["tensor"])
    assert {name: head_mask.num_active for name, head_mask in masks.items()} == ACTIVE_HEADS
    for (a, b), jaccard in JACCARD.items():
        assert overlap(masks[a], masks[b]).jaccard == pytest.approx(jaccard, abs=1e-3)
