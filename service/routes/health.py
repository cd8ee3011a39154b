"""Is the process alive, does it take requests."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.runtime import Runtime
from service.schemas import ErrorEnvelope, Health

router = APIRouter(tags=["operation"])


@router.get(
    "/healthz",
    summary="Alive",
    responses={503: {"model": ErrorEnvelope, "description": "The engine has died."}},
)
async def healthz(request: Request) -> Health:
    """200 also while the model is loading or requests are drained; 503 once only a restart helps."""
    runtime: Runtime = request.app.state.runtime
    runtime.check_alive()
    return Health(status="ok")


@router.get(
    "/readyz",
    summary="Ready",
    responses={503: {"model": ErrorEnvelope, "description": "Loading, draining or failed; see Retry-After."}},
)
async def readyz(request: Request) -> Health:
    """200 when requests are taken; 503 while the model is loading and from SIGTERM on."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    return Health(status="ready")
