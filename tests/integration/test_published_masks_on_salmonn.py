"""The way of docs/salmonn.md at SALMONN-13B's 40 x 40 heads: masks imported, verified and served."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.random_salmonn import SMALL, write_random_salmonn
from service.app import create_app
from service.settings import Settings
from tests.command_line import Cli
from tests.ready_client import ready_client
from tests.salmonn_toy import DATA

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "published-masks"
# folders of the published masks, the tasks in them, and their active heads
FOLDERS = {
    "aac_audiocaps": ("aac", 1426),
    "asr_gender_json_librispeech": ("asr-gr-json", 1124),
    "asr_gender_librispeech": ("asr-gr", 837),
    "asr_librispeech": ("asr", 1525),
    "asv_voxceleb1": ("asv", 1311),
    "emotion_iemocap": ("ser", 1146),
    "gender_asr_librispeech": ("gr-asr", 1315),
    "gender_librispeech": ("gr", 1259),
    "osr_libri2mix": ("osr", 1550),
    "s2tt_covost2": ("s2tt", 1551),
}
TASKS = dict(FOLDERS.values())


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = dataclasses.replace(SMALL, num_layers=40, num_heads=40, width=80, inner=80)
    return write_random_salmonn(tmp_path_factory.mktemp("salmonn"), shape)


@pytest.fixture(params=["made here", "published"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of masks: as many active heads as the published ones, drawn here, or the published ones."""
    if request.param == "published":
        if not PUBLISHED.is_dir():
            pytest.skip(f"the published masks are not in {PUBLISHED}")
        return PUBLISHED
    generator = torch.Generator().manual_seed(0)
    for name, (_, num_active) in FOLDERS.items():
        logits = torch.full((1600,), -3.0)
        logits[torch.randperm(1600, generator=generator)[:num_active]] = 3.0
        feed_forward = torch.full((40, 1), -3.0)
        tensor = torch.cat([logits.reshape(40, 40), feed_forward], dim=1).flatten()
        (tmp_path / "made" / name).mkdir(parents=True)
        torch.save({"model": {"tensor": tensor}}, tmp_path / "made" / name / "checkpoint.pth")
    return tmp_path / "made"


def test_published_masks_are_imported_verified_and_served(
    cli: Cli, source: Path, model_file: Path, tmp_path: Path
) -> None:
    masks_dir, tasks = tmp_path / "masks", tmp_path / "tasks.toml"
    tasks.write_text("".join(f"[{name}]\nmax_new_tokens = 4\n" for name in FOLDERS))
    options = ("--model", model_file)
    code, _, err = cli("masks", "import", source, *options, "--out", masks_dir, "--tasks", tasks)
    assert code == 0, err
    code, out, err = cli("masks", "verify", masks_dir, *options)
    assert (code, out.count(": ok\n")) == (0, len(FOLDERS)), err

    clips = [(DATA / "audio" / f"clip{number}.flac").read_bytes() for number in (0, 1)]
    singles = sorted(set(TASKS) - {"asv"})
    with ready_client(create_app(Settings(model=str(model_file), masks_dir=masks_dir))) as client:
        several = client.post(f"/tasks?tasks={','.join(singles)}", files={"file": clips[0]}).json()["results"]
        pair = client.post("/tasks/asv", files=[("file", clip) for clip in clips]).json()
    answers = {**several, "asv": pair}
    assert {task: answer["head_mask"]["active_heads"] for task, answer in answers.items()} == TASKS
    assert {answer["usage"]["audio_tokens"] for answer in answers.values()} == {88}
