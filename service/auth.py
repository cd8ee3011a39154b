"""Who may ask: an API key for every route but health, when the service has a file of keys."""

from __future__ import annotations

from contextlib import nullcontext

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import (
    AdminKeyNeededError,
    InvalidKeyError,
    MissingKeyError,
    TooManyRequestsOfKeyError,
    error_response,
)
from service.key_ring import KeyRing
from service.keys import ApiKey
from service.keys import Scope as KeyScope

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# What takes work or memory and counts against the limit of a key; looking at something does not.
_COUNTED_METHODS = frozenset({"POST", "PUT", "DELETE", "PATCH"})


class ApiKeyMiddleware:
    """Refuses, before a byte of the body is read, what comes without a key of `key_ring`.

    Leaves the key in the request's state as `api_key`. Pure ASGI; within RequestMiddleware.
    """

    def __init__(self, app: ASGIApp, key_ring: KeyRing) -> None:
        self._app = app
        self._key_ring = key_ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        refusal: Exception
        try:
            key = self._key_of(Headers(scope=scope).get("authorization"))
            scope["state"]["api_key"] = key
            counted = scope["method"] in _COUNTED_METHODS
            with self._key_ring.request_of(key) if counted else nullcontext():
                await self._app(scope, receive, send)
            return
        except (MissingKeyError, InvalidKeyError, TooManyRequestsOfKeyError) as error:
            refusal = error
        await error_response(refusal, scope["state"]["request_id"], scope["path"])(scope, receive, send)

    def _key_of(self, authorization: str | None) -> ApiKey:
        if authorization is None:
            raise MissingKeyError("an API key is needed: send the header 'Authorization: Bearer <key>'")
        kind, _, secret = authorization.partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise InvalidKeyError("the Authorization header must be 'Bearer <key>'")
        key = self._key_ring.find(secret.strip())
        if key is None:
            raise InvalidKeyError("this API key is not known, or was revoked")
        return key


def key_id_of(request: Request) -> str | None:
    """The id of the API key that a request came with; None in a service that everybody may use."""
    key: ApiKey | None = getattr(request.state, "api_key", None)
    return None if key is None else key.id


async def require_admin(request: Request) -> None:
    """Let through who has an admin key; a dependency of routes that change the service.

    Raises:
        AdminKeyNeededError: another key, or a service without keys, which nobody may change.
    """
    key: ApiKey | None = getattr(request.state, "api_key", None)
    if key is None:
        raise AdminKeyNeededError(
            "this changes the service, and needs an admin key: start the service with AHAMASK_API_KEYS_FILE"
        )
    if key.scope is not KeyScope.ADMIN:
        raise AdminKeyNeededError(f"this needs an admin key; the scope of key {key.id} is {key.scope.value}")
