from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from service.errors import TooManyRequestsOfKeyError
from service.key_ring import KeyRing
from service.keys import ApiKey, KeyFile, KeyFileError, Scope, new_key, revoke_key
from service.metrics import Metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keys.json"


def make(path: Path, name: str = "someone", **options: Any) -> tuple[ApiKey, str]:
    return new_key(path, name, options.get("scope", Scope.INFER), options.get("max_concurrent"))


def num_reloads(metrics: Metrics, outcome: str) -> float | None:
    labels = {"what": "api_keys", "outcome": outcome}
    return metrics.registry.get_sample_value("ahamask_reloads_total", labels)


def test_a_key_is_found_by_its_secret_alone(path: Path) -> None:
    first, secret = make(path, "first")
    second, other = make(path, "second", scope=Scope.ADMIN, max_concurrent=3)
    key_file = KeyFile.load(path)
    assert key_file.keys == (first, second)
    assert (key_file.find(secret), key_file.find(other)) == (first, second)
    assert (second.scope, second.max_concurrent) == (Scope.ADMIN, 3)
    for wrong in ("", secret[:-1], secret + "A", first.id, first.sha256, "\udcff", "é"):
        assert key_file.find(wrong) is None


def test_the_file_tells_no_secret_and_only_its_owner_may_read_it(path: Path) -> None:
    _, secret = make(path)
    assert secret.startswith("ahk_")
    assert secret.removeprefix("ahk_") not in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_revoked_key_is_gone_and_the_others_are_not(path: Path) -> None:
    (first, secret), (second, other) = make(path), make(path)
    assert revoke_key(path, first.id) == first
    assert KeyFile.load(path).find(secret) is None
    assert KeyFile.load(path).find(other) == second
    with pytest.raises(KeyFileError, match=f"no key '{first.id}'"):
        revoke_key(path, first.id)


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    threads = [threading.Thread(target=make, args=(path, f"key {number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in KeyFile.load(path).keys} == {f"key {number}" for number in range(8)}


def changed(content: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**content, "keys": [{**content["keys"][0], **values}]}


WRONG: dict[str, Any] = {
    "not JSON": lambda _: "{",
    "not an object": lambda _: "[]",
    "another format": lambda content: json.dumps({**content, "format": "ahamask-keys/2"}),
    "an unknown key": lambda content: json.dumps(changed(content, expires="never")),
    "no digest": lambda content: json.dumps(changed(content, sha256="secret")),
    "an unknown scope": lambda content: json.dumps(changed(content, scope="root")),
    "no limit": lambda content: json.dumps(changed(content, max_concurrent=0)),
    "no time zone": lambda content: json.dumps(changed(content, created="2026-11-24T19:00:00")),
    "the same key twice": lambda content: json.dumps({**content, "keys": content["keys"] * 2}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_by_name_and_in_one_line(path: Path, name: str) -> None:
    key, _ = make(path)
    path.write_text(WRONG[name](json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    for use in (lambda: KeyFile.load(path), lambda: make(path), lambda: revoke_key(path, key.id)):
        with pytest.raises(KeyFileError) as caught:
            use()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "x" * 65])
def test_a_name_says_something(path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="name"):
        make(path, name)
    assert not path.exists()


def test_a_ring_follows_its_file(path: Path) -> None:
    _, secret = make(path)
    metrics = Metrics()
    ring = KeyRing(path, metrics, max_concurrent=None)
    assert ring.find(secret) is not None
    assert num_reloads(metrics, "ok") == 0
    key, other = make(path)
    assert ring.find(other) == key
    revoke_key(path, key.id)
    assert ring.find(other) is None
    assert ring.find(secret) is not None
    assert num_reloads(metrics, "ok") == 2


@pytest.mark.parametrize("content", ["{", None])
def test_a_ring_keeps_its_keys_when_the_file_breaks(path: Path, content: str | None) -> None:
    _, secret = make(path)
    metrics = Metrics()
    ring = KeyRing(path, metrics, max_concurrent=None)
    good = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    for _ in range(3):
        assert ring.find(secret) is not None
    assert (num_reloads(metrics, "ok"), num_reloads(metrics, "failed")) == (0, 1)
    ring.reload()
    assert num_reloads(metrics, "failed") == 2
    path.write_bytes(good)
    assert ring.find(secret) is not None
    assert num_reloads(metrics, "ok") == 1


def test_a_ring_starts_with_a_good_file_only(path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyRing(path, Metrics(), max_concurrent=None)


@pytest.mark.parametrize(("own", "common", "limit"), [(2, None, 2), (None, 1, 1), (2, 1, 2), (1, 5, 1)])
def test_a_key_has_so_many_requests_at_a_time(
    path: Path, own: int | None, common: int | None, limit: int
) -> None:
    key, _ = make(path, max_concurrent=own)
    other, _ = make(path, max_concurrent=own)
    ring = KeyRing(path, Metrics(), max_concurrent=common)
    held = [ring.request_of(key) for _ in range(limit)]
    for request in held:
        request.__enter__()
    with pytest.raises(TooManyRequestsOfKeyError, match=f"{limit} requests"), ring.request_of(key):
        pass
    with ring.request_of(other):
        pass
    held[0].__exit__(None, None, None)
    with ring.request_of(key):
        pass


def test_without_a_limit_a_key_has_any_number(path: Path) -> None:
    key, _ = make(path)
    ring = KeyRing(path, Metrics(), max_concurrent=None)
    for _ in range(100):
        ring.request_of(key).__enter__()
