"""The service on Ray Serve: copies of it that are added and removed by the requests they have.

    pip install ahamask 'ray[serve]'
    serve run deploy.ray.app:app                     # settings: AHAMASK_ variables, as for `ahamask serve`

Ray's proxy takes the place of the service's own server (AHAMASK_HOST and AHAMASK_PORT are not read). It sends
a request to a copy that has room; beyond `max_queued_requests` that wait for one, it answers 503.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from service.app import create_app
from service.runtime import Phase
from service.settings import Settings


def build() -> FastAPI:
    """An application that has started only when its model is loaded: Ray sends requests from then on."""
    application = create_app(Settings.from_environment())
    runtime = application.state.runtime
    start = application.router.lifespan_context

    @asynccontextmanager
    async def start_and_load(started: FastAPI) -> AsyncIterator[None]:
        async with start(started):
            await runtime.settled.wait()
            if runtime.phase is Phase.FAILED:
                raise RuntimeError(f"cannot start: {runtime.failure}")
            yield

    application.router.lifespan_context = start_and_load
    return application


@serve.ingress(build)
class Service:
    """One copy: a process with a model of its own."""

    def check_health(self) -> None:
        """Ray replaces a copy whose engine has died.

        Raises:
            NotReadyError: it has.
        """
        self.app.state.runtime.check_alive()  # type: ignore[attr-defined]


def application(
    settings: Settings, *, min_replicas: int, max_replicas: int, max_queued: int, num_gpus: float = 0
) -> Application:
    """Copies for `settings`, between two numbers of them.

    A copy is added when the copies have more than `max_slots` requests each, on average; each takes
    `max_slots + max_waiting` of them at most, and `max_queued` wait at the proxy.
    """
    deployment = serve.deployment(
        Service,
        name="ahamask",
        max_ongoing_requests=settings.max_slots + settings.max_waiting,
        max_queued_requests=max_queued,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": settings.max_slots,
        },
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        ray_actor_options={"num_cpus": 1, "num_gpus": num_gpus},
    )
    return deployment.bind()


def app(arguments: dict[str, str]) -> Application:
    """What `serve run deploy.ray.app:app min_replicas=2 max_replicas=4 num_gpus=1` runs."""
    return application(
        Settings.from_environment(),
        min_replicas=int(arguments.get("min_replicas", 1)),
        max_replicas=int(arguments.get("max_replicas", 4)),
        max_queued=int(arguments.get("max_queued", 256)),
        num_gpus=float(arguments.get("num_gpus", 0)),
    )
