"""Mask files and manifests of any content; tests/fuzz/ does the same, longer and guided by coverage."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lalm.head_mask import MaskFile
from tests.fuzz.targets import ANNOTATION, MASK_FILE, TASK, check_manifest, check_mask_file, seeds
from training.manifest import load_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value, the value itself not among them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in inner for place in ((*path, key), *places(each, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A good file with something in it replaced or missing, or with other bytes."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        *path, key = draw(st.sampled_from(places(value)))
        holder: Any = value
        for step in path:
            holder = holder[step]
        if isinstance(holder, dict) and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = draw(JSON)
        if not places(value):
            break
    content = json.dumps(value, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(content)))
        content = content[:start] + draw(st.binary(max_size=8)) + content[start + draw(st.integers(0, 8)) :]
    return content


@settings(max_examples=120)
@given(st.one_of(changed(MASK_FILE), st.binary(max_size=64)))
def test_any_mask_file_is_read_or_refused(content: bytes) -> None:
    check_mask_file(content)


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(changed(ANNOTATION), changed({"annotation": [ANNOTATION]}), st.binary(max_size=64)))
def test_any_manifest_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    check_manifest(content, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b'["annotation"]',
        b'"\\"annotation\\""',
        b'{"\\u0061nnotation": []}',
        b'{"annotation": [], "annotation": [1]}',
        b'{\n"annotation": [' + b"[" * 50_000,
        b"[" * 50_000,
        b"1" * 5_000,
        json.dumps({**ANNOTATION, "path": "a" * 5_000}).encode(),
        json.dumps({**ANNOTATION, "path": "a\0b"}).encode(),
        json.dumps({**ANNOTATION, "path": "\ud800"}).encode(),
        json.dumps({"a\nb": 1, "annotation": []}).encode(),
    ],
)
def test_manifests_that_were_trouble_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    check_manifest(content, tmp_path)


def test_the_good_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    for content in seeds(MASK_FILE):
        assert MaskFile.parse(content, Path("asr-gr.json")).head_mask.num_active == 5
    for content in [seeds(ANNOTATION)[0], *seeds({"annotation": [ANNOTATION]})]:
        path = tmp_path / "good.json"
        path.write_bytes(content)
        assert len(load_manifest(path, TASK).examples) == 1
