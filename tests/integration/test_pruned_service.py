"""A compiled checkpoint behind the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from service.app import create_app
from service.inference.packed import PackedPass
from service.settings import Settings
from tests.command_line import command_line
from tests.fake_engine import recording
from tests.mask_files import write_mask_file
from tests.ready_client import ready_client

# no head at all; one key-value head and not the other; groups of unequal size
RAGGED = HeadMask.from_strings(["00000000", "00000110", "01110100"])
UNEVEN = HeadMask.from_strings(["10010111", "11110110", "01110100"])


def answers_of(settings: Settings, durations_s: tuple[float, ...]) -> list[dict[str, Any]]:
    app = create_app(settings)
    with ready_client(app) as client:
        assert [task["name"] for task in client.get("/tasks").json()["tasks"]] == ["asr"]
        responses = [
            client.post("/tasks/asr", content=recording(seconds), headers={"Content-Type": "audio/wav"})
            for seconds in durations_s
        ]
    assert [response.status_code for response in responses] == [200] * len(durations_s)
    return [response.json() for response in responses]


@pytest.mark.parametrize("head_mask", [RAGGED, UNEVEN], ids=["ragged", "uneven"])
def test_one_option_serves_it_and_its_answers_are_those_of_the_mask(
    head_mask: HeadMask,
    toy_checkpoint: Path,
    toy_family: ModelFamily,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    masks, out = tmp_path / "masks", tmp_path / "asr-lalm"
    write_mask_file(masks, "asr", toy_family.identity, head_mask)
    options = ["--model", toy_checkpoint, "--masks", masks, "--out", out]
    with command_line(monkeypatch, capsys) as cli:
        code, printed, err = cli("masks", "compile", "asr", "--json", *options)
        assert (code, err) == (0, "")
        sizes = json.loads(printed)
        assert (sizes["num_heads"], sizes["num_active"]) == (24, head_mask.num_active)
        assert cli("masks", "verify", "--model", out, out / "masks")[0] == 0
        code, _, err = cli("masks", "compile", "asr", *options)
        assert (code, "nothing is overwritten" in err) == (1, True)

    durations_s = (0.3, 0.9)
    masked = answers_of(Settings(model=str(toy_checkpoint), masks_dir=masks), durations_s)
    with patch.object(PackedPass, "prefill", autospec=True, side_effect=PackedPass.prefill) as packed:
        pruned = answers_of(Settings(model=str(out)), durations_s)
    assert packed.call_count > len(durations_s)  # warm-up too
    for answer, expected in zip(pruned, masked, strict=True):
        assert answer["text"] == expected["text"]
        assert answer["usage"] == expected["usage"]
        assert answer["head_mask"] == expected["head_mask"]
        assert answer["model"] == "asr-lalm"
    assert masked[0]["text"] != masked[1]["text"]
