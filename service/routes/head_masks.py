"""The head masks of a running service: read, replace, remove."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from lalm.head_mask import MaskFile
from service.answers import head_mask_info
from service.auth import require_admin
from service.mask_store import MaskStore
from service.runtime import Runtime
from service.schemas import ErrorEnvelope, HeadMaskInfo
from service.uploads import read_body

router = APIRouter(tags=["head masks"])

# A head mask of 100 x 100 heads takes ten thousand bytes; the rest is room for its records.
MAX_MASK_FILE_BYTES = 2**20

_PATH = "/tasks/{task}/mask"
_MASK_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A head mask file, as masks/README.md describes it and `GET` gives it.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def _errors(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    common = {
        "e404": "No such task; the message names the known ones.",
        "e422": "A parameter does not fit.",
        "e503": "Loading or draining; come back after Retry-After seconds.",
    }
    return {
        int(status.removeprefix("e")): {"model": ErrorEnvelope, "description": description}
        for status, description in sorted({**common, **descriptions}.items())
    }


_CHANGE_ERRORS = _errors(
    e403="Not an admin key, or a service without API keys.",
    e409="The folder of head masks cannot be written, or this is the last task.",
    e429="This API key has as many requests as it may have at a time; come back after Retry-After seconds.",
)


@router.get(_PATH, summary="Get a head mask", responses=_errors())
async def get_mask(request: Request, task: str) -> Response:
    """The head mask file of a task, byte for byte what `ahamask train` writes into masks/."""
    runtime: Runtime = request.app.state.runtime
    mask_file: MaskFile = runtime.serving().catalogue[task].mask_file
    return Response(mask_file.encode(), media_type="application/json")


@router.put(
    _PATH,
    summary="Set a head mask",
    dependencies=[Depends(require_admin)],
    openapi_extra=_MASK_FILE,
    responses=_CHANGE_ERRORS
    | _errors(
        e408="The body took too long to arrive.",
        e413="More bytes than a head mask file may have.",
        e422="Not a head mask file, not of this task, or made for another model.",
    )
    | {201: {"model": HeadMaskInfo, "description": "The task is new."}},
)
async def put_mask(request: Request, response: Response, task: str) -> HeadMaskInfo:
    """Serve a task under this head mask from the next request on; requests that have begun keep theirs.

    curl -X PUT -H "Authorization: Bearer $ADMIN_KEY" --data-binary @asr.json localhost:8080/tasks/asr/mask
    """
    encoded = await read_body(request, MAX_MASK_FILE_BYTES)
    mask_store: MaskStore = request.app.state.mask_store
    entry, is_new = await mask_store.put(task, encoded)
    response.status_code = 201 if is_new else 200
    return head_mask_info(entry.head_mask)


@router.delete(
    _PATH,
    summary="Remove a task",
    status_code=204,
    dependencies=[Depends(require_admin)],
    responses=_CHANGE_ERRORS,
)
async def delete_mask(request: Request, task: str) -> None:
    """Serve a task no more, and remove its head mask file; requests that have begun are answered."""
    mask_store: MaskStore = request.app.state.mask_store
    await mask_store.delete(task)
