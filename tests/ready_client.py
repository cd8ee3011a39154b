"""A client for an application in the test's own process, without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient


@contextmanager
def ready_client(app: FastAPI, **options: Any) -> Iterator[TestClient]:
    """Once the application has loaded its model, or has failed to; `options` are those of `TestClient`."""
    with TestClient(app, **options) as client:
        assert client.portal is not None
        client.portal.call(app.state.runtime.settled.wait)
        yield client
