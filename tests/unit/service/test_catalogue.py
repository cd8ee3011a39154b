from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import OutputKind, OutputSpec, TaskSpec
from service.catalogue import Catalogue
from service.errors import UnknownTaskError

IDENTITY = ModelIdentity(
    family="qwen2_audio", name="toy", fingerprint="sha256:" + "0" * 64, num_layers=2, num_heads=4
)


def save(folder: Path, name: str, *, num_active: int = 5, identity: ModelIdentity = IDENTITY) -> HeadMask:
    shape = (identity.num_layers, identity.num_heads)
    head_mask = HeadMask.random(num_active, np.random.default_rng(0), shape)
    task = TaskSpec(name=name, title=name, output=OutputSpec(kind=OutputKind.TEXT), max_new_tokens=8)
    mask_file = MaskFile(
        task=task, model=identity, heads=tuple(head_mask.to_strings()), training={}, evaluation={"wer": 0.1}
    )
    mask_file.save(folder / f"{name}.json")
    return head_mask


def test_every_file_is_a_task(tmp_path: Path) -> None:
    first, second = save(tmp_path, "s2tt", num_active=3), save(tmp_path, "asr")
    (tmp_path / "README.md").write_text("not a mask file")
    catalogue = Catalogue.load(tmp_path, IDENTITY)
    assert [entry.task.name for entry in catalogue] == ["asr", "s2tt"]
    assert (catalogue["s2tt"].head_mask, catalogue["asr"].head_mask) == (first, second)
    assert catalogue["asr"].path == tmp_path / "asr.json"
    assert catalogue["asr"].evaluation == {"wer": 0.1}
    assert "asr" in catalogue
    assert "gr" not in catalogue


def test_an_unknown_task_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    save(tmp_path, "asr")
    save(tmp_path, "gr")
    with pytest.raises(UnknownTaskError, match="unknown task 'asv'; known tasks: asr, gr"):
        Catalogue.load(tmp_path, IDENTITY)["asv"]


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(HeadMaskError, match="nowhere: no such folder"):
        Catalogue.load(tmp_path / "nowhere", IDENTITY)


def test_a_folder_without_mask_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadMaskError, match="no mask file"):
        Catalogue.load(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": "sha256:" + "1" * 64}, "fingerprint"),
        ({"num_layers": 3}, "3 layers x 4 heads"),
        ({"family": "salmonn"}, "salmonn"),
    ],
)
def test_one_mask_of_another_model_refuses_the_whole_folder(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    save(tmp_path, "asr")
    save(tmp_path, "gr", identity=IDENTITY.model_copy(update=change))
    with pytest.raises(HeadMaskError, match=reason) as caught:
        Catalogue.load(tmp_path, IDENTITY)
    assert caught.value.path == tmp_path / "gr.json"


def test_a_broken_file_refuses_the_whole_folder(tmp_path: Path) -> None:
    save(tmp_path, "asr")
    (tmp_path / "gr.json").write_text('{"format": "ahamask/2"}')
    with pytest.raises(HeadMaskError, match=r"gr\.json: .*ahamask/2"):
        Catalogue.load(tmp_path, IDENTITY)
