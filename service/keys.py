"""API keys: a file of hashed keys, made by `ahamask keys`.

    {"format": "ahamask-keys/1",
     "keys": [{"id": "3kq0x9vd", "name": "call centre", "scope": "infer", "sha256": "…",
               "created": "2026-11-24T19:00:00Z", "max_concurrent": 4}]}

A key is 256 random bits, so that its plain SHA-256 gives nothing away: there is no list of likely keys to try
against the file, which a slow hash would have to defend. The key itself is shown once, when it is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from lalm.json_file import read_object, write_object
from service.settings import SettingsError

FORMAT: Literal["ahamask-keys/1"] = "ahamask-keys/1"
_PREFIX = "ahk_"
_KEY_BYTES = 32
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 8
# Only the owner may read the file: names and scopes are nobody else's business.
_MODE = 0o600

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class KeyFileError(SettingsError):
    """A file of API keys that cannot be used, or that has no such key; one line."""


class Scope(StrEnum):
    """What a key may do."""

    INFER = "infer"  # everything but what changes the service
    ADMIN = "admin"  # that too


class ApiKey(BaseModel):
    """One key, as the file has it.

    id: for people and logs; says nothing of the key. max_concurrent: requests it may have at a time, or None
    for the service's own limit.
    """

    model_config = _FROZEN

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{8}$")]
    name: Annotated[str, StringConstraints(pattern=r"\S", max_length=64)]
    scope: Scope
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    max_concurrent: Annotated[StrictInt, Field(ge=1)] | None = None


class KeyFile(BaseModel):
    """The keys of one file, in the order in which they were made."""

    model_config = _FROZEN

    format: Literal["ahamask-keys/1"] = FORMAT
    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for what in ("id", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            KeyFileError: unreadable, not JSON, or not of this format.
        """
        try:
            return cls.model_validate(read_object(path))
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise KeyFileError(f"{path}: {_reason(error)}") from error
        except ValueError as error:
            raise KeyFileError(f"{path}: {error}") from error

    def find(self, secret: str) -> ApiKey | None:
        """The key that `secret` is, in a time that does not depend on how much of it is right."""
        digest = _digest(secret)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def new_key(path: Path, name: str, scope: Scope, max_concurrent: int | None) -> tuple[ApiKey, str]:
    """Add a key to the file, which is made if there is none; returns it and its secret, kept nowhere.

    Raises:
        KeyFileError: the file is wrong or cannot be written, or the name is blank or too long.
    """
    secret = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    with _locked(path):
        keys = KeyFile.load(path).keys if path.exists() else ()
        try:
            key = ApiKey(
                id="".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH)),
                name=name,
                scope=scope,
                sha256=_digest(secret),
                created=datetime.now(UTC).replace(microsecond=0),
                max_concurrent=max_concurrent,
            )
            _save(path, KeyFile(keys=(*keys, key)))
        except ValidationError as error:
            raise KeyFileError(_reason(error)) from error
    return key, secret


def revoke_key(path: Path, key_id: str) -> ApiKey:
    """Take a key out of the file and return it.

    Raises:
        KeyFileError: the file is wrong or cannot be written, or has no key of this id.
    """
    with _locked(path):
        keys = KeyFile.load(path).keys
        for key in keys:
            if key.id == key_id:
                _save(path, KeyFile(keys=tuple(other for other in keys if other is not key)))
                return key
    raise KeyFileError(f"{path}: there is no key {key_id!r}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile; the lock is on its folder, for the file is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _save(path: Path, key_file: KeyFile) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else _MODE
    try:
        write_object(path, key_file.model_dump(mode="json", exclude_none=True), mode=mode)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from error
    except ValueError as error:
        raise KeyFileError(f"{path}: {error}") from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _reason(error: ValidationError) -> str:
    """Every complaint in one line, without the values: they might be keys."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        for problem in error.errors(include_input=False)
    )
