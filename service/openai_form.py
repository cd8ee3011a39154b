"""The form of OpenAI's audio API: which fields there are, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidParameterError
from service.openai_formats import ResponseFormat
from service.uploads import Form

_LIST = "timestamp_granularities[]"


class AudioForm(BaseModel):
    """Every field but the file.

    `language` and `prompt` are hints, which a head mask cannot take: they are accepted, for clients that send
    them always, and change nothing. What would change the answer and is not done here is refused.
    """

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, description="A task with text, or the name of the model.")]
    language: Annotated[str | None, Field(description="Given back by verbose_json; else no effect.")] = None
    prompt: Annotated[str | None, Field(description="Accepted, without effect.")] = None
    response_format: ResponseFormat = ResponseFormat.JSON
    temperature: Annotated[
        float, Field(ge=0, le=0, description="0: the likeliest token is taken, always.")
    ] = 0
    stream: Annotated[bool, Field(description="Answer with server-sent events; with json or text.")] = False
    timestamp_granularities: Annotated[
        list[Literal["segment"]], Field(alias="timestamp_granularities[]", description="Segments only.")
    ] = []
    chunking_strategy: Annotated[
        Literal["auto"] | None, Field(description="Long recordings are always split at pauses.")
    ] = None


def audio_form(form: Form) -> AudioForm:
    """The fields of a form that was read.

    Raises:
        InvalidParameterError: an unknown field, one that is missing, sent twice, or with a value that is not
            allowed; or a format that cannot be streamed.
    """
    values: dict[str, Any] = {}
    for name, value in form.fields:
        if name == _LIST:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidParameterError(f"{name} is sent twice", param=name)
        else:
            values[name] = value
    fields = _checked(values)
    if fields.stream and fields.response_format not in (ResponseFormat.JSON, ResponseFormat.TEXT):
        raise InvalidParameterError(
            f"{fields.response_format} cannot be streamed; json and text can", param="response_format"
        )
    return fields


def form_schema() -> dict[str, Any]:
    """The form in the OpenAPI document."""
    schema = AudioForm.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = {
        name: _inline(value, schema.get("$defs", {})) for name, value in schema["properties"].items()
    }
    file = {"type": "string", "format": "binary", "description": "The recording."}
    return {
        "type": "object",
        "required": ["file", "model"],
        "properties": {"file": file, **properties},
        "additionalProperties": False,
    }


def _checked(values: Mapping[str, Any]) -> AudioForm:
    try:
        return AudioForm.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        message = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in problems)
        raise InvalidParameterError(message, param=str(problems[0]["loc"][0])) from None


def _inline(schema: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    reference = schema.pop("$ref", None)
    return {**definitions[reference.rpartition("/")[2]], **schema} if reference else schema
