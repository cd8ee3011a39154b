"""The value, its file, and every way a file can be refused."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError

from lalm.errors import HeadMaskError
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity

grids = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
FINGERPRINT = "sha256:" + "0123456789abcdef" * 4


def content() -> dict[str, Any]:
    """What stands in a file that is right; every refusal below spoils one thing in it."""
    fields = [{"name": "gender", "labels": ["male", "female"]}, {"name": "transcript"}]
    return {
        "format": "ahamask/1",
        "task": {
            "name": "gr-asr",
            "title": "Gender, then transcript",
            "output": {"kind": "fields", "separator": "|", "fields": fields},
            "num_audios": 1,
            "max_new_tokens": 96,
        },
        "model": {
            "family": "qwen2_audio",
            "name": "tiny-lalm",
            "fingerprint": FINGERPRINT,
            "num_layers": 3,
            "num_heads": 4,
        },
        "heads": ["1101", "0111", "1000"],
        "training": {"seed": 1, "recipe": "short", "tau": {"start": 4.0, "end": 0.05}},
        "evaluation": {"wer": 2.5, "split": "test", "num_examples": 200},
    }


def write(folder: Path, value: Any, name: str = "gr-asr.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


# the value


@given(grids)
def test_strings_round_trip(heads: NDArray[np.bool_]) -> None:
    head_mask = HeadMask(heads)
    again = HeadMask.from_strings(head_mask.to_strings())
    assert again == head_mask
    assert hash(again) == hash(head_mask)
    assert again.sha256 == head_mask.sha256
    assert np.array_equal(again.heads, heads)
    assert (again.num_layers, again.num_heads, again.num_active) == (*heads.shape, int(heads.sum()))


@given(grids, st.data())
def test_one_flipped_head_is_another_head_mask(heads: NDArray[np.bool_], data: st.DataObject) -> None:
    other = heads.copy()
    index = data.draw(st.integers(0, heads.size - 1))
    other.flat[index] = not other.flat[index]
    assert HeadMask(other) != HeadMask(heads)
    assert HeadMask(other).sha256 != HeadMask(heads).sha256


def test_the_shape_counts_as_content() -> None:
    wide, tall = HeadMask.ones(2, 8), HeadMask.ones(8, 2)
    assert wide.packed == tall.packed
    assert wide != tall
    assert wide.sha256 != tall.sha256
    assert wide != "11111111"


def test_the_digest_is_the_same_on_every_machine() -> None:
    digest = HeadMask.from_strings(["1101", "0111", "1000"]).sha256
    assert digest == "ac9ffd6326fd9ae11d77e3523cbc784cf4b85787049d0ef842daf156943a0908"


def test_packed_is_an_eighth_of_the_heads() -> None:
    assert len(HeadMask.ones(40, 40).packed) == 200
    assert HeadMask.from_strings(["10000000", "00000001"]).packed == b"\x80\x01"


def test_heads_are_copied_and_cannot_be_written() -> None:
    heads = np.ones((2, 3), dtype=np.bool_)
    head_mask = HeadMask(heads)
    heads[:] = False
    assert head_mask == HeadMask.ones(2, 3)
    with pytest.raises(ValueError, match="read-only"):
        head_mask.heads[0, 0] = False
    with pytest.raises(ValueError, match="WRITEABLE"):
        head_mask.heads.setflags(write=True)


def test_zeros_and_ones_of_any_type_are_heads() -> None:
    numbers: Any = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert HeadMask(numbers) == HeadMask.from_strings(["01", "10"])
    assert HeadMask(numbers).heads.dtype == np.bool_


@pytest.mark.parametrize(
    "heads", [np.ones(4), np.ones((2, 2, 2)), np.ones((0, 4)), np.ones((4, 0)), [[0, 2]], [[0.5]], [[np.nan]]]
)
def test_what_is_no_head_mask_is_refused(heads: Any) -> None:
    with pytest.raises(ValueError, match="head mask"):
        HeadMask(heads)


@pytest.mark.parametrize("rows", [[], [""], ["11", "1"], ["12"], ["1 1"], ["١١"]])
def test_strings_that_are_no_head_mask_are_refused(rows: list[str]) -> None:
    with pytest.raises(ValueError, match="layer"):
        HeadMask.from_strings(rows)


@given(st.integers(0, 12), st.integers(0, 2**32))
def test_random_has_the_asked_number_of_heads(num_active: int, seed: int) -> None:
    first = HeadMask.random(num_active, np.random.default_rng(seed), (3, 4))
    again = HeadMask.random(num_active, np.random.default_rng(seed), (3, 4))
    assert first.heads.shape == (3, 4)
    assert first.num_active == num_active
    assert first == again


@pytest.mark.parametrize("num_active", [-1, 13])
def test_random_refuses_what_does_not_fit(num_active: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        HeadMask.random(num_active, np.random.default_rng(0), (3, 4))


def test_random_reaches_every_head() -> None:
    rng = np.random.default_rng(0)
    seen = np.sum([HeadMask.random(6, rng, (3, 4)).heads for _ in range(100)], axis=0)
    assert np.all((seen > 20) & (seen < 80))


# the file


def test_load_reads_what_stands_there(tmp_path: Path) -> None:
    mask_file = MaskFile.load(write(tmp_path, content()))
    assert mask_file.task.name == "gr-asr"
    assert mask_file.head_mask == HeadMask.from_strings(["1101", "0111", "1000"])
    assert mask_file.evaluation["wer"] == 2.5


def test_saved_files_are_read_back_and_are_the_same_to_the_byte(tmp_path: Path) -> None:
    mask_file = MaskFile.load(write(tmp_path, content()))
    first, second = tmp_path / "a" / "gr-asr.json", tmp_path / "b" / "gr-asr.json"
    mask_file.save(first)
    again = MaskFile.load(first)
    again.save(second)
    assert again == mask_file
    assert first.read_bytes() == second.read_bytes()


def test_the_order_of_the_records_does_not_show(tmp_path: Path) -> None:
    shuffled = content()
    shuffled["training"] = {"tau": {"end": 0.05, "start": 4.0}, "recipe": "short", "seed": 1}
    MaskFile.model_validate(content()).save(tmp_path / "a" / "gr-asr.json")
    MaskFile.model_validate(shuffled).save(tmp_path / "b" / "gr-asr.json")
    assert (tmp_path / "a/gr-asr.json").read_bytes() == (tmp_path / "b/gr-asr.json").read_bytes()


def test_a_changed_layer_is_one_changed_line(tmp_path: Path) -> None:
    path = tmp_path / "gr-asr.json"
    MaskFile.model_validate(content()).save(path)
    before = path.read_text().splitlines()
    MaskFile.model_validate(content() | {"heads": ["1101", "0011", "1000"]}).save(path)
    after = path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [('    "0111",', '    "0011",')]


def test_save_leaves_a_readable_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "gr-asr.json"
    MaskFile.model_validate(content()).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["gr-asr.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_bytes().endswith(b"}\n")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, content())
    before = path.read_bytes()

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(HeadMaskError, match="No space left"):
        MaskFile.model_validate(content()).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["gr-asr.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_save_refuses_numbers_that_are_no_json(tmp_path: Path, number: float) -> None:
    mask_file = MaskFile.model_validate(content() | {"evaluation": {"wer": number}})
    with pytest.raises(HeadMaskError, match="cannot be written as JSON"):
        mask_file.save(tmp_path / "gr-asr.json")
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_the_name_of_another_task(tmp_path: Path) -> None:
    with pytest.raises(HeadMaskError, match=r"belongs into gr-asr\.json"):
        MaskFile.model_validate(content()).save(tmp_path / "asr.json")


# refusals: what is spoilt, and what the reason must say

Spoil = Callable[[dict[str, Any]], object]


def setting(place: str, value: Any) -> Spoil:
    """Put `value` at a place like "task.output.kind"; digits are positions in a list."""

    def spoil(file: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
        target: Any = file
        for parent in parents:
            target = target[parent]
        target[last] = value

    return spoil


def dropping(place: str) -> Spoil:
    *parents, last = place.split(".")
    return lambda file: (file[parents[0]] if parents else file).pop(last)


LABEL_OUTPUT: dict[str, Any] = {"kind": "label", "labels": ["male", "female"]}

REFUSALS: list[tuple[Spoil, str]] = [
    (setting("format", "ahamask/2"), "format is 'ahamask/2', only 'ahamask/1' is known"),
    (setting("format", 1), "format is 1"),
    (dropping("format"), "format is None"),
    (setting("heds", []), "unknown key 'heds'"),
    (setting("task.prompt", "hi"), "unknown key 'task.prompt'"),
    (setting("task.output.sep", "|"), "unknown key 'task.output.sep'"),
    (setting("task.output.fields.0.label", []), "unknown key 'task.output.fields.0.label'"),
    (setting("model.size", 1), "unknown key 'model.size'"),
    (dropping("task"), "key 'task' is missing"),
    (dropping("model"), "key 'model' is missing"),
    (dropping("heads"), "key 'heads' is missing"),
    (dropping("training"), "key 'training' is missing"),
    (dropping("evaluation"), "key 'evaluation' is missing"),
    (dropping("task.max_new_tokens"), "key 'task.max_new_tokens' is missing"),
    (dropping("task.output"), "key 'task.output' is missing"),
    (dropping("model.fingerprint"), "key 'model.fingerprint' is missing"),
    # heads
    (setting("heads", []), "there is no layer"),
    (setting("heads", "1101"), "heads: "),
    (setting("heads.1", "011"), "layer 1 has 3 heads, layer 0 has 4"),
    (setting("heads.1", "01x1"), "layer 1 is not a string of 0 and 1: '01x1'"),
    (setting("heads.0", ""), "layer 0 is not a string of 0 and 1"),
    (setting("heads.2", 1000), "heads.2: "),
    (setting("heads.2", [1, 0, 0, 0]), "heads.2: "),
    (setting("heads", ["1101", "0111"]), "heads are 2 layers x 4 heads, the model of the file has 3 layers"),
    (setting("heads", ["11", "01", "10"]), "heads are 3 layers x 2 heads"),
    (setting("model.num_layers", 4), "the model of the file has 4 layers x 4 heads"),
    (setting("model.num_heads", 8), "the model of the file has 3 layers x 8 heads"),
    (setting("heads", ["0000"] * 3), "no head is active"),
    # task
    (setting("task.name", "GR ASR"), "task.name: "),
    (setting("task.name", "../gr-asr"), "task.name: "),
    (setting("task.title", ""), "task.title: "),
    (setting("task.num_audios", 3), "task.num_audios: "),
    (setting("task.num_audios", 0), "task.num_audios: "),
    (setting("task.num_audios", True), "task.num_audios: "),
    (setting("task.max_new_tokens", 0), "task.max_new_tokens: "),
    (setting("task.max_new_tokens", "96"), "task.max_new_tokens: "),
    (setting("task.output.kind", "poem"), "task.output.kind: "),
    (setting("task.output.kind", "text"), "output kind 'text' has no 'separator'"),
    (setting("task.output.kind", "json"), "output kind 'json' has no 'separator'"),
    (setting("task.output.separator", None), "output kind 'fields' needs 'separator'"),
    (setting("task.output.separator", " "), "separator ' ' is blank"),
    (setting("task.output.fields", []), "at least 2 fields"),
    (setting("task.output.fields.1.name", "gender"), "field 'gender' stands twice"),
    (setting("task.output.fields.0.labels", []), "task.output.fields.0.labels: the label set is empty"),
    (setting("task.output.fields.0.labels", ["male", "Male"]), "label 'Male' stands twice"),
    (setting("task.output.fields.0.labels", ["ma|le"]), "contains the separator"),
    (setting("task.output", {"kind": "label"}), "output kind 'label' needs 'labels'"),
    (setting("task.output", {"kind": "label", "labels": []}), "the label set is empty"),
    (setting("task.output", LABEL_OUTPUT | {"labels": ["a", "a"]}), "label 'a' stands twice"),
    # model
    (setting("model.family", ""), "model.family: "),
    (setting("model.fingerprint", "md5:00"), "model.fingerprint: "),
    (setting("model.fingerprint", "sha256:12"), "model.fingerprint: "),
    (setting("model.num_layers", 0), "model.num_layers: "),
    (setting("model.num_heads", 4.5), "model.num_heads: "),
    (setting("training", None), "training: "),
    (setting("evaluation", [1]), "evaluation: "),
]


@pytest.mark.parametrize(("spoil", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_load_refuses(tmp_path: Path, spoil: Spoil, reason: str) -> None:
    file = content()
    spoil(file)
    path = write(tmp_path, file)
    with pytest.raises(HeadMaskError) as refusal:
        MaskFile.load(path)
    assert reason in refusal.value.reason
    assert str(refusal.value) == f"{path}: {refusal.value.reason}"
    assert refusal.value.path == path
    assert "\n" not in refusal.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("heads: 11", "not JSON"),
        (json.dumps(content())[:-1], "not JSON"),
        (json.dumps(content()) + "{}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"format": "ahamask/1", "format": "ahamask/1"}', "key 'format' stands twice"),
        (json.dumps(content() | {"evaluation": {"wer": float("nan")}}), "NaN is not a number"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
    ],
)
def test_load_refuses_what_is_no_json_object(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(HeadMaskError) as refusal:
        MaskFile.load(write(tmp_path, text))
    assert reason in refusal.value.reason


def test_load_refuses_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "gr-asr.json"
    path.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(HeadMaskError, match="not JSON"):
        MaskFile.load(path)


@pytest.mark.parametrize("name", ["asr.json", "gr-asr.txt", "gr-asr", "gr-asr.old.json", "GR-ASR.json"])
def test_load_refuses_a_file_that_is_not_named_after_its_task(tmp_path: Path, name: str) -> None:
    with pytest.raises(HeadMaskError, match=r"task 'gr-asr' belongs into gr-asr\.json"):
        MaskFile.load(write(tmp_path, content(), name))


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_load_names_a_file_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(HeadMaskError, match="cannot be read: "):
        MaskFile.load(tmp_path / path)


def test_several_faults_are_named_at_once(tmp_path: Path) -> None:
    file = content() | {"extra": 1}
    file["task"]["num_audios"] = 3
    with pytest.raises(HeadMaskError, match=r"task\.num_audios: .*; unknown key 'extra'"):
        MaskFile.load(write(tmp_path, file))


# the model


def identity(**changes: Any) -> ModelIdentity:
    return ModelIdentity.model_validate(content()["model"] | changes)


@pytest.mark.parametrize("changes", [{}, {"name": "the same under another name"}], ids=str)
def test_the_model_it_was_made_for_is_accepted(changes: dict[str, Any]) -> None:
    MaskFile.model_validate(content()).check_model(identity(**changes), Path("gr-asr.json"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "salmonn"}, "made for family 'qwen2_audio', the model is 'salmonn'"),
        ({"num_layers": 4}, "made for 3 layers x 4 heads, the model 'tiny-lalm' has 4 layers x 4 heads"),
        ({"num_heads": 2}, "made for 3 layers x 4 heads, the model 'tiny-lalm' has 3 layers x 2 heads"),
        ({"fingerprint": "sha256:" + "f" * 64}, f"with fingerprint {FINGERPRINT}, the model"),
    ],
)
def test_another_model_is_refused(changes: dict[str, Any], reason: str) -> None:
    path = Path("masks/gr-asr.json")
    with pytest.raises(HeadMaskError) as refusal:
        MaskFile.model_validate(content()).check_model(identity(**changes), path)
    assert reason in refusal.value.reason
    assert refusal.value.path == path


def test_a_mask_file_is_frozen() -> None:
    mask_file = MaskFile.model_validate(content())
    with pytest.raises(ValidationError):
        mask_file.heads = ("1111",) * 3
