"""The service's settings. Nothing else reads the environment.

Every field is an environment variable with the prefix AHAMASK_ (AHAMASK_MAX_SLOTS=32); the port is also read
from PORT. A value that does not fit stops the start with the variable's name and what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from lalm import tiny

_REPOSITORY = Path(__file__).resolve().parent.parent


class SettingsError(Exception):
    """Settings that the service cannot start with; one line that names each and what is allowed."""


class Settings(BaseSettings):
    """Settings of one service process; immutable once made."""

    model_config = SettingsConfigDict(
        env_prefix="AHAMASK_",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        populate_by_name=True,
        # `model` and `model_name` are fields here, not pydantic's.
        protected_namespaces=(),
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(
        8080,
        ge=0,
        le=65_535,
        validation_alias=AliasChoices("AHAMASK_PORT", "PORT"),
        description="Port to listen on (PORT is read too); 0 lets the system choose.",
    )

    model: str = Field(
        str(tiny.CHECKPOINT),
        min_length=1,
        description="Folder of a checkpoint, a model file, or a Hugging Face id; by default tiny-lalm.",
    )
    revision: str | None = Field(None, description="Revision (branch, tag, commit) of a Hugging Face id.")
    device: str = Field("cpu", min_length=1, description="Where the model runs: cpu, cuda, cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the weights: float32, bfloat16 or float16."
    )
    quantize: Literal["int8", "int4"] | None = Field(
        None, description="Weights of the decoder's linear layers, read as int8 or int4; by default as dtype."
    )
    device_map: str | None = Field(
        None,
        min_length=1,
        description="auto: the decoder's layers over all GPUs; or a JSON object from modules to devices.",
    )
    masks_dir: Path | None = Field(
        None,
        description="Folder of head mask files, one a task; by default masks/ of the checkpoint's folder, "
        "or masks/<model name> of the repository.",
    )
    cuda_graphs: bool = Field(
        True, description="On a GPU: whether decode steps are captured at the start, and replayed."
    )
    torch_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the model; by default torch's choice, within affinity and quota.",
    )

    max_slots: int = Field(16, ge=1, description="Rows decoded together: the size of the running batch.")
    max_waiting: int = Field(
        64, ge=0, description="Rows that may wait for a slot; beyond them requests are answered 429."
    )

    max_audio_cache_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Memory for encoded audio of recordings that may come again (64 MiB); 0 keeps none.",
    )

    max_audio_s: float = Field(
        300.0,
        gt=0,
        description="Longest recording accepted, in seconds; the model's window for tasks that do not split.",
    )
    max_upload_bytes: int = Field(
        25 * 2**20, ge=1, description="Largest recording accepted, in bytes as uploaded (25 MiB)."
    )
    max_uploads: int = Field(
        64, ge=1, description="Requests that may send their recording at a time; beyond them 429."
    )
    upload_timeout_s: float = Field(
        120.0, gt=0, description="Seconds a request may take to send its body; beyond them 408."
    )
    request_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Seconds a request may take, upload included; beyond them 504. "
        "X-Request-Timeout asks for less.",
    )
    audio_workers: int = Field(
        2, ge=1, description="Threads that decode audio and compute features, beside the event loop."
    )

    api_keys_file: Path | None = Field(
        None,
        description="File of API keys (`ahamask keys new`); with it every route but health needs a key.",
    )
    api_key_max_concurrent: int | None = Field(
        None,
        ge=1,
        description="Requests an API key may have at a time if it has no limit of its own; beyond it 429.",
    )

    feedback_dir: Path | None = Field(
        None, description="Folder that corrected answers (POST /feedback) are written to; without it 404."
    )
    feedback_audio: bool = Field(
        False,
        description="Whether recordings may be kept: recent ones in memory, corrected ones in it.",
    )
    feedback_recent_bytes: int = Field(
        64 * 2**20, ge=1, description="Memory for requests that may still be corrected (64 MiB)."
    )
    feedback_recent_s: float = Field(
        900.0, gt=0, description="Seconds for which an answered request may be corrected."
    )
    feedback_retention_days: float = Field(
        90.0, gt=0, le=36_500, description="Days after which a correction and its audio are removed."
    )
    feedback_max_bytes: int = Field(
        2**30, ge=1, description="Size of the folder beyond which corrections are answered 507 (1 GiB)."
    )

    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds that accepted requests get to finish after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines written: debug, info, warning or error."
    )
    otel_endpoint: str | None = Field(
        None,
        min_length=1,
        description="Where OpenTelemetry traces go, by OTLP over HTTP: http://collector:4318/v1/traces.",
    )
    log_json: bool = Field(False, description="Log lines as JSON objects instead of text.")

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """The environment's settings, those of `overrides` (by field name) in place of it.

        Raises:
            SettingsError: a value does not fit.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise SettingsError("; ".join(_complaint(problem) for problem in error.errors())) from error

    def masks_dir_for(self, model_name: str) -> Path:
        """The folder of mask files for the model called `model_name`.

        `masks_dir`; masks/ in the checkpoint's own folder, where it has one; or masks/<model_name>.
        """
        own = Path(self.model) / "masks"
        return self.masks_dir or (own if own.is_dir() else _REPOSITORY / "masks" / model_name)


def _complaint(problem: ErrorDetails) -> str:
    field = str(problem["loc"][0]).lower().removeprefix("ahamask_")
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {field!r}"
    return f"{field} (AHAMASK_{field.upper()}): {problem['msg']}, not {problem['input']!r}"
