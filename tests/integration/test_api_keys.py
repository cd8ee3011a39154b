"""Who may ask what, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from service.app import create_app
from service.keys import KeyFile, KeyFileError, Scope, new_key, revoke_key
from service.settings import Settings
from tests.command_line import Cli
from tests.fake_engine import FakeEngine, recording, write_masks
from tests.ready_client import ready_client
from tests.served import WAV, free_port, run, serving


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def key(keys_file: Path) -> str:
    _, secret = new_key(keys_file, "tests", Scope.INFER, 1)
    return secret


@pytest.fixture
def settings(tmp_path: Path, keys_file: Path, key: str) -> Settings:
    write_masks(tmp_path / "masks")
    return Settings(masks_dir=tmp_path / "masks", api_keys_file=keys_file, port=free_port())


@pytest.fixture
def client(settings: Settings, engine: FakeEngine) -> Iterator[TestClient]:
    app = create_app(settings, engine)
    with ready_client(app) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def post(client: TestClient, headers: dict[str, str]) -> Any:
    return client.post("/tasks/asr", content=recording(), headers={**WAV, **headers})


def test_every_route_but_health_needs_a_key(client: TestClient, key: str) -> None:
    paths = client.get("/openapi.json", headers=bearer(key)).json()["paths"]
    assert {"/tasks", "/metrics", "/healthz"} <= set(paths)
    operations = [(method, path) for path, item in paths.items() for method in item]
    hidden = [("get", path) for path in ("/docs", "/openapi.json", "/nowhere", "/healthz/", "//healthz")]
    for method, path in [*operations, *hidden, ("put", "/")]:
        response = client.request(method, path.replace("{task}", "asr"))
        if path in ("/healthz", "/readyz"):
            assert response.status_code == 200
            continue
        error = response.json()["error"]
        kind = error["code"] if path.startswith("/v1/") else error["type"]
        assert (response.status_code, kind) == (401, "missing_api_key"), path
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic YTpi", "Bearer ahk_\xe9", "{key}"]
)
def test_a_wrong_key_is_401_and_reaches_nothing(
    client: TestClient, engine: FakeEngine, key: str, authorization: str
) -> None:
    header = authorization.replace("{key}", key).encode("latin-1")
    response = client.post(
        "/tasks/asr", content=recording(), headers={b"Authorization": header, b"Content-Type": b"audio/wav"}
    )
    assert (response.status_code, response.json()["error"]["type"]) == (401, "invalid_api_key")
    assert key not in response.text
    assert engine.requests == []


def test_a_key_opens_the_routes_and_its_id_is_logged(client: TestClient, key: str, keys_file: Path) -> None:
    with capture_logs() as lines:
        assert post(client, bearer(key)).status_code == 200
        assert post(client, {"Authorization": f"bearer  {key} "}).status_code == 200
    (made,) = KeyFile.load(keys_file).keys
    assert [line["api_key"] for line in lines if line["event"] == "request"] == [made.id, made.id]
    assert key not in str(lines)
    for path in ("/tasks", "/metrics", "/docs"):
        assert client.get(path, headers=bearer(key)).status_code == 200


def test_the_document_says_where_a_key_is_needed(client: TestClient, key: str, tmp_path: Path) -> None:
    document = client.get("/openapi.json", headers=bearer(key)).json()
    for path, item in document["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == (path not in ("/healthz", "/readyz"))
    write_masks(tmp_path / "open")
    with TestClient(create_app(Settings(masks_dir=tmp_path / "open"), FakeEngine())) as open_client:
        assert "security" not in json.dumps(open_client.get("/openapi.json").json())


def test_a_new_key_works_at_once_and_a_revoked_one_no_more(
    client: TestClient, keys_file: Path, key: str
) -> None:
    made, other = new_key(keys_file, "other", Scope.INFER, None)
    assert post(client, bearer(other)).status_code == 200
    revoke_key(keys_file, made.id)
    assert post(client, bearer(other)).status_code == 401
    assert post(client, bearer(key)).status_code == 200


def test_a_key_has_only_so_many_requests_at_a_time(
    settings: Settings, engine: FakeEngine, keys_file: Path, key: str
) -> None:
    engine.hold = True
    _, unlimited = new_key(keys_file, "unlimited", Scope.INFER, None)

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            service.client.headers.update(bearer(key))
            held = service.post()
            await service.in_engine()
            refused = await service.post()
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "too_many_requests")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await service.client.get("/tasks")).status_code == 200  # looking does not count
            other = asyncio.create_task(
                service.client.post("/tasks/asr", content=recording(), headers={**WAV, **bearer(unlimited)})
            )
            engine.release.set()
            assert [(await held).status_code, (await other).status_code] == [200, 200]
            assert (await service.post()).status_code == 200

    run(test)


def test_sighup_reads_the_keys_again(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            os.kill(os.getpid(), signal.SIGHUP)
            while b'ahamask_reloads_total{outcome="ok",what="api_keys"} 1.0' not in (
                service.runtime.metrics.render()
            ):
                await service.client.get("/healthz")
            assert (await service.client.get("/tasks")).status_code == 401

    run(test)


def test_a_wrong_file_of_keys_stops_the_start(settings: Settings, keys_file: Path) -> None:
    for content in ("{", None):
        keys_file.unlink()
        if content is not None:
            keys_file.write_text(content, encoding="utf-8")
        with pytest.raises(KeyFileError, match=str(keys_file)):
            create_app(settings, FakeEngine())


def test_the_command_makes_lists_and_revokes(
    cli: Cli, client: TestClient, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHAMASK_API_KEYS_FILE", str(keys_file))
    code, out, err = cli("keys", "new", "call centre", "--admin", "--max-concurrent", "4")
    secret = out.strip()
    assert (code, len(out.split())) == (0, 1)
    assert "admin" in err
    assert post(client, bearer(secret)).status_code == 200
    _, listed, _ = cli("keys", "list")
    (line,) = [line for line in listed.splitlines() if "call centre" in line]
    assert line.split("\t")[1:3] == ["admin", "4"]
    records = [json.loads(line) for line in cli("keys", "list", "--json")[1].splitlines()]
    assert [(record["name"], record["scope"]) for record in records] == [
        ("tests", "infer"),
        ("call centre", "admin"),
    ]
    assert "sha256" not in records[0]
    assert cli("keys", "revoke", records[1]["id"])[0] == 0
    assert post(client, bearer(secret)).status_code == 401
    assert cli("keys", "revoke", records[1]["id"]) == (
        2,
        "",
        f"ahamask: {keys_file}: there is no key {records[1]['id']!r}\n",
    )


def test_the_command_asks_for_a_file(cli: Cli) -> None:
    code, _, err = cli("keys", "list")
    assert (code, "AHAMASK_API_KEYS_FILE" in err) == (2, True)
