"""Head masks that change while the service runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from lalm.head_mask import MaskFile
from service.app import create_app
from service.keys import Scope, new_key
from service.settings import Settings
from tests.fake_engine import IDENTITY, FakeEngine, head_mask, recording, write_masks
from tests.ready_client import ready_client
from tests.served import WAV, free_port, run, serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_masks(tmp_path / "masks")
    return tmp_path / "masks"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The header of a key of each scope."""
    return {
        scope.value: {
            "Authorization": f"Bearer {new_key(tmp_path / 'keys.json', scope.value, scope, None)[1]}"
        }
        for scope in Scope
    }


@pytest.fixture
def settings(tmp_path: Path, folder: Path, keys: dict[str, dict[str, str]]) -> Settings:
    return Settings(masks_dir=folder, api_keys_file=tmp_path / "keys.json", port=free_port())


@pytest.fixture
def client(settings: Settings, engine: FakeEngine, keys: dict[str, dict[str, str]]) -> Iterator[TestClient]:
    """A client with an admin key."""
    app = create_app(settings, engine)
    with ready_client(app, headers=keys["admin"]) as client:
        yield client


def changed(folder: Path, task: str, *, name: str | None = None, **values: Any) -> bytes:
    """The mask file of `task` with other values, under another name if one is given."""
    content = json.loads((folder / f"{task}.json").read_text(encoding="utf-8"))
    content.update(values)
    content["task"]["name"] = name or task
    return json.dumps(content).encode()


OTHER_HEADS = ["1000", "0001"]


def answer(client: TestClient, task: str) -> Any:
    return client.post(f"/tasks/{task}", content=recording(), headers=WAV)


def test_the_file_of_a_head_mask_is_given_as_it_lies(client: TestClient, folder: Path) -> None:
    response = client.get("/tasks/asr/mask")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.content == (folder / "asr.json").read_bytes()
    assert client.get("/tasks/diarize/mask").status_code == 404


def test_a_head_mask_is_replaced_for_the_next_request(
    client: TestClient, engine: FakeEngine, folder: Path
) -> None:
    before = answer(client, "asr").json()["head_mask"]
    response = client.put("/tasks/asr/mask", content=changed(folder, "asr", heads=OTHER_HEADS))
    assert response.status_code == 200
    after = answer(client, "asr").json()["head_mask"]
    assert after == response.json() == client.get("/tasks/asr").json()["head_mask"]
    assert (before["sha256"] != after["sha256"], after["active_heads"]) == (True, 2)
    assert engine.requests[-1].rows[0].head_mask == MaskFile.load(folder / "asr.json").head_mask
    assert 'ahamask_active_heads{task="asr"} 2.0' in client.get("/metrics").text
    assert client.get("/tasks/asr/mask").content == (folder / "asr.json").read_bytes()


def test_a_new_head_mask_is_a_new_task_and_stays_one(
    client: TestClient, settings: Settings, folder: Path, keys: dict[str, dict[str, str]]
) -> None:
    response = client.put("/tasks/diarize/mask", content=changed(folder, "asr", name="diarize"))
    assert response.status_code == 201
    assert "diarize" in [task["name"] for task in client.get("/tasks").json()["tasks"]]
    app = create_app(settings, FakeEngine())
    with ready_client(app, headers=keys["infer"]) as restarted:
        assert restarted.get("/tasks/diarize").status_code == 200


def test_a_removed_task_is_gone(client: TestClient, folder: Path) -> None:
    response = client.delete("/tasks/gr/mask")
    assert (response.status_code, response.content) == (204, b"")
    assert answer(client, "gr").status_code == 404
    assert not (folder / "gr.json").exists()
    assert 'ahamask_active_heads{task="gr"}' not in client.get("/metrics").text
    assert client.delete("/tasks/gr/mask").status_code == 404


def test_the_last_task_stays(client: TestClient, folder: Path) -> None:
    assert [client.delete(f"/tasks/{name}/mask").status_code for name in ("gr", "asv", "asr-gr")] == [204] * 3
    response = client.delete("/tasks/asr/mask")
    assert (response.status_code, response.json()["error"]["type"]) == (409, "last_task")
    assert answer(client, "asr").status_code == 200


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "nothing": (lambda _: b"", "not JSON"),
    "not JSON": (lambda _: b"{", "not JSON"),
    "deep": (lambda _: b"[" * 200_000, "not JSON"),
    "a list": (lambda _: b"[]", "not a JSON object"),
    "another task's": (lambda folder: (folder / "gr.json").read_bytes(), "'gr' belongs into gr.json"),
    "another shape": (lambda folder: changed(folder, "asr", heads=["1"]), "heads are 1 layers"),
    "no head": (lambda folder: changed(folder, "asr", heads=["0000"] * 2), "no head is active"),
    "another format": (lambda folder: changed(folder, "asr", format="ahamask/2"), "ahamask/2"),
    "half a character": (
        lambda folder: changed(folder, "asr", training={"a": "\ud800"}),
        "head mask for this service",
    ),
    "another model's": (
        lambda folder: changed(
            folder,
            "asr",
            model={**IDENTITY.model_dump(), "fingerprint": "sha256:" + "1" * 64},
        ),
        "fingerprint",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_changes_nothing(client: TestClient, folder: Path, name: str) -> None:
    make, said = BAD[name]
    before = (folder / "asr.json").read_bytes()
    response = client.put("/tasks/asr/mask", content=make(folder))
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_head_mask")
    assert said in response.json()["error"]["message"]
    assert (folder / "asr.json").read_bytes() == before
    assert answer(client, "asr").json()["head_mask"]["sha256"] == head_mask("asr").sha256


def test_a_file_of_any_length_is_not_taken(client: TestClient) -> None:
    response = client.put("/tasks/asr/mask", content=b" " * (2**20 + 1))
    assert (response.status_code, response.json()["error"]["type"]) == (413, "upload_too_large")


@pytest.mark.parametrize(
    "path",
    ["..", "%2e%2e", "..%2f..%2fetc", "%2Fetc%2Fpasswd", "a%00b", "asr.json", "ASR", "-", "a" * 65, "é"],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_no_name_leads_out_of_the_folder(client: TestClient, folder: Path, method: str, path: str) -> None:
    outside = folder.parent / "outside.json"
    outside.write_bytes(changed(folder, "asr"))
    names = sorted(folder.parent.rglob("*"))
    for name in (path, f"{path}%2foutside", "..%2foutside"):
        content = changed(folder, "asr", name="../outside")
        response = client.request(method, f"/tasks/{name}/mask", content=content)
        assert response.status_code in (404, 405, 422), response.text
    assert sorted(folder.parent.rglob("*")) == names
    assert outside.read_bytes() == changed(folder, "asr")


def test_only_an_admin_key_changes_anything(
    client: TestClient, folder: Path, keys: dict[str, dict[str, str]]
) -> None:
    before = (folder / "asr.json").read_bytes()
    for method in ("PUT", "DELETE"):
        content = changed(folder, "asr", heads=OTHER_HEADS)
        response = client.request(method, "/tasks/asr/mask", content=content, headers=keys["infer"])
        assert (response.status_code, response.json()["error"]["type"]) == (403, "admin_key_needed")
    assert client.get("/tasks/asr/mask", headers=keys["infer"]).status_code == 200
    assert (folder / "asr.json").read_bytes() == before


def test_a_service_without_keys_cannot_be_changed(folder: Path) -> None:
    app = create_app(Settings(masks_dir=folder), FakeEngine())
    with ready_client(app) as client:
        assert client.get("/tasks/asr/mask").status_code == 200
        for method in ("PUT", "DELETE"):
            response = client.request(method, "/tasks/asr/mask", content=changed(folder, "asr"))
            assert (response.status_code, response.json()["error"]["type"]) == (403, "admin_key_needed")


def test_a_folder_that_cannot_be_written_is_said(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also root, whom no permission stops, may run this.
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    for response in (
        client.put("/tasks/asr/mask", content=changed(folder, "asr", heads=OTHER_HEADS)),
        client.delete("/tasks/gr/mask"),
    ):
        assert (response.status_code, response.json()["error"]["type"]) == (409, "head_masks_read_only")
        assert "AHAMASK_MASKS_DIR" in response.json()["error"]["message"]
    assert answer(client, "asr").json()["head_mask"]["sha256"] == head_mask("asr").sha256
    assert answer(client, "gr").status_code == 200


def test_a_request_that_has_begun_keeps_its_head_mask(
    settings: Settings, engine: FakeEngine, folder: Path, keys: dict[str, dict[str, str]]
) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            service.client.headers.update(keys["admin"])
            await service.runtime.settled.wait()
            old = service.post()
            await service.in_engine()
            content = changed(folder, "asr", heads=OTHER_HEADS)
            assert (await service.client.put("/tasks/asr/mask", content=content)).status_code == 200
            new = service.post()
            while len(engine.requests) < 2:
                await service.client.get("/healthz")
            assert (await service.client.delete("/tasks/asr/mask")).status_code == 204
            assert (await service.post()).status_code == 404
            engine.release.set()
            changed_mask = MaskFile.parse(content, folder / "asr.json").head_mask
            for answered, expected in ((old, head_mask("asr")), (new, changed_mask)):
                assert (await answered).json()["head_mask"]["sha256"] == expected.sha256

    run(test)


def test_sighup_reads_the_folder_and_a_broken_file_keeps_what_it_had(
    settings: Settings, engine: FakeEngine, folder: Path, keys: dict[str, dict[str, str]]
) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            service.client.headers.update(keys["infer"])
            await service.runtime.settled.wait()

            async def reloaded(outcome: str, count: int) -> None:
                os.kill(os.getpid(), signal.SIGHUP)
                sample = f'ahamask_reloads_total{{outcome="{outcome}",what="head_masks"}} {count}.0'
                while sample.encode() not in service.runtime.metrics.render():
                    await service.client.get("/healthz")

            async def active_heads() -> dict[str, int]:
                tasks = (await service.client.get("/tasks")).json()["tasks"]
                return {task["name"]: task["head_mask"]["active_heads"] for task in tasks}

            before = await active_heads()
            (folder / "diarize.json").write_bytes(changed(folder, "asr", name="diarize", heads=OTHER_HEADS))
            (folder / "gr.json").unlink()
            (folder / "asr.json").write_bytes(changed(folder, "asr", heads=OTHER_HEADS))
            await reloaded("ok", 1)
            now = {"asr": 2, "diarize": 2, "asr-gr": before["asr-gr"], "asv": before["asv"]}
            assert await active_heads() == now

            (folder / "asr.json").write_text("{", encoding="utf-8")
            (folder / "s2tt.json").write_text("{", encoding="utf-8")
            with capture_logs() as lines:
                await reloaded("failed", 1)
            errors = [line["path"] for line in lines if line["log_level"] == "error"]
            assert errors == [str(folder / "asr.json"), str(folder / "s2tt.json")]
            assert await active_heads() == now
            assert (await service.post()).status_code == 200

            shutil.rmtree(folder)
            await reloaded("failed", 2)
            assert await active_heads() == now

    run(test)


def test_no_request_is_dropped_while_head_masks_change(
    settings: Settings, engine: FakeEngine, folder: Path, keys: dict[str, dict[str, str]]
) -> None:
    first, second = (folder / "asr.json").read_bytes(), changed(folder, "asr", heads=OTHER_HEADS)

    async def test() -> None:
        async with serving(settings, engine) as service:
            service.client.headers.update(keys["admin"])
            await service.runtime.settled.wait()
            statuses = []

            async def ask() -> None:
                statuses.extend([(await service.post()).status_code for _ in range(20)])

            async def change() -> None:
                for content in (second, first) * 5:
                    os.kill(os.getpid(), signal.SIGHUP)
                    response = await service.client.put("/tasks/asr/mask", content=content)
                    statuses.append(response.status_code)

            await asyncio.gather(ask(), ask(), change())
            assert statuses == [200] * 50

    run(test)
