"""The model a head mask was made for."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints


class ModelIdentity(BaseModel):
    """The model a head mask belongs to; `fingerprint` is a digest of its weights, `name` is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Annotated[str, StringConstraints(min_length=1)]
    name: Annotated[str, StringConstraints(min_length=1)]
    fingerprint: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    num_layers: Annotated[StrictInt, Field(ge=1)]
    num_heads: Annotated[StrictInt, Field(ge=1)]
