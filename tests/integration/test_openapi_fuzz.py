"""Requests drawn from the OpenAPI document, and such as it does not allow: no 500, and every answer is as the
document says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import create_app
from service.keys import Scope, new_key
from service.settings import Settings
from tests.fake_engine import TASKS, FakeEngine, recording, write_masks
from tests.ready_client import ready_client

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def _document() -> dict[str, Any]:
    """That of a service with API keys."""
    with TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        new_key(keys, "fuzz", Scope.ADMIN, None)
        return create_app(Settings(masks_dir=Path(folder), api_keys_file=keys)).openapi()


DOCUMENT = _document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OFTEN = st.sampled_from([*[True] * 3, False])
SELDOM = st.sampled_from([*[False] * 9, True])
NOT_KEYS = st.sampled_from(["", "Basic abc", "Bearer", "Bearer nobody"])
OPERATIONS = [
    (mode, method, path)
    for path, item in sorted(DOCUMENT["paths"].items())
    for method in sorted(item)
    for mode in GenerationMode
    # Of a request without a body nothing is forbidden, or everything but one value.
    if mode is GenerationMode.POSITIVE or "requestBody" in item[method]
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client with an admin key."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_masks(folder / "masks")
    _, secret = new_key(folder / "keys.json", "fuzz", Scope.ADMIN, None)
    options = {"api_keys_file": folder / "keys.json", "feedback_dir": folder / "feedback"}
    app = create_app(Settings(masks_dir=folder / "masks", **options), FakeEngine())
    with ready_client(
        app, headers={"Authorization": f"Bearer {secret}"}, raise_server_exceptions=False
    ) as client:
        yield client


@pytest.mark.parametrize(("mode", "method", "path"), OPERATIONS)
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_answer_is_documented(
    client: TestClient, mode: GenerationMode, method: str, path: str, data: st.DataObject
) -> None:
    case = data.draw(SCHEMA[path][method.upper()].as_strategy(generation_mode=mode))
    case.headers = {name: value for name, value in case.headers.items() if name.lower() != "authorization"}
    if data.draw(SELDOM):
        case.headers["Authorization"] = data.draw(NOT_KEYS)
    names = st.sampled_from(sorted(TASKS))
    if "task" in case.path_parameters and data.draw(OFTEN):
        case.path_parameters["task"] = data.draw(names)
    if "tasks" in case.query and data.draw(OFTEN):
        case.query["tasks"] = data.draw(st.lists(names, min_size=1, max_size=2))
    if case.body is not NOT_SET and method == "post" and data.draw(OFTEN):
        if path.startswith("/v1") and isinstance(case.body, dict):
            case.body |= {"file": recording(0.01), "model": data.draw(names)}
        else:
            case.body, case.media_type = recording(0.01), "application/octet-stream"
    prepared = requests.Request(**case.as_transport_kwargs(base_url=str(client.base_url))).prepare()
    response = client.request(
        method.upper(),
        str(prepared.url),
        content=prepared.body,
        headers={name.encode(): value.encode("latin-1") for name, value in prepared.headers.items()},
    )
    # 504 is what a deadline of next to nothing asks for.
    asked_for = response.status_code == 504 and "x-request-timeout" in response.request.headers
    case.validate_response(response, checks=CHECKS[1:] if asked_for else CHECKS)
