"""The wiring: settings become an application, an application becomes a server."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

import structlog
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from lalm.errors import LalmError
from service.auth import ApiKeyMiddleware
from service.errors import install_error_handlers
from service.logging import configure_logging
from service.mask_store import MaskStore
from service.middleware import RequestMiddleware
from service.openai_schemas import OpenAIErrorEnvelope
from service.routes import feedback, head_masks, health, metrics, openai, tasks
from service.runtime import InferenceEngine, Loaded, Phase, Runtime
from service.schemas import ErrorEnvelope
from service.settings import Settings
from service.tracing import TracingMiddleware, tracer_provider

# What uvicorn waits for connections to close once every accepted request is answered.
CLOSE_TIMEOUT_S = 2

log = structlog.get_logger(__name__)

_DESCRIPTION = """\
One audio language model, no instructions: each task is triggered by a **head mask**, a few hundred bits that
silence some of the decoder's attention heads. `GET /tasks` lists what is served; POST a recording to
`/tasks/{task}`. Every error has the body `{"error": {"type", "message", "param", "request_id"}}`.
"""


def create_app(settings: Settings, engine: InferenceEngine | None = None) -> FastAPI:
    """The application for `settings`; the model is loaded once it starts, while /healthz answers already.

    engine: used instead of loading `settings.model` (for tests); the application starts and stops it, and
        its series appear in /metrics only if the caller made its observer.
    """
    runtime = Runtime(settings)
    provider = tracer_provider(settings)

    def make() -> Loaded:
        # It takes torch and transformers seconds to import; /healthz need not wait for them.
        from service.loading import complete, load

        loaded = load(settings, runtime.metrics) if engine is None else complete(settings, engine)
        loaded.engine.start(entry.head_mask for entry in loaded.catalogue)
        return loaded

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(runtime, make))
        forgetting = asyncio.create_task(runtime.feedback.forget_regularly()) if runtime.feedback else None
        runtime.started.set()
        yield
        if forgetting is not None:
            forgetting.cancel()
        await _shut_down(runtime, loading)
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)

    app = FastAPI(title="AHAMask", description=_DESCRIPTION, version="1", lifespan=lifespan)
    app.state.runtime = runtime
    app.state.mask_store = MaskStore(runtime)
    # The outermost comes last.
    if provider is not None:
        app.add_middleware(TracingMiddleware, provider=provider)
    if runtime.key_ring is not None:
        app.add_middleware(ApiKeyMiddleware, key_ring=runtime.key_ring)
    app.add_middleware(RequestMiddleware, runtime=runtime)
    install_error_handlers(app)
    app.include_router(health.router)
    for resource in (tasks, head_masks, feedback, openai, metrics):
        if runtime.key_ring is None:
            app.include_router(resource.router)
            continue
        # Checked by the middleware; this is for the page of the API.
        envelope = OpenAIErrorEnvelope if resource is openai else ErrorEnvelope
        unknown = {"model": envelope, "description": "No API key, or one that is not known."}
        app.include_router(
            resource.router, dependencies=[Depends(HTTPBearer(auto_error=False))], responses={401: unknown}
        )
    return app


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and answer what was accepted by then.

    Returns the exit code of the process: 0, or 1 when the model or its head masks could not be loaded.

    Raises:
        SystemExit: the address cannot be listened on.
    """
    configure_logging(settings.log_level, as_json=settings.log_json)
    return asyncio.run(serve_app(create_app(settings)))


async def serve_app(app: FastAPI) -> int:
    """`serve` for an application made by `create_app`; in the main thread, for the sake of signals."""
    runtime: Runtime = app.state.runtime
    config = uvicorn.Config(
        app,
        host=runtime.settings.host,
        port=runtime.settings.port,
        http="h11",  # httptools, which uvicorn would take if it is installed, keeps headers without limit
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve())
    await runtime.started.wait()
    # By now uvicorn has set its own signal handlers. They close the port at once; ours keep it open while
    # accepted requests are answered, so that others (and the readiness probe) get their 503.
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = loop.create_task(_stop(server, runtime, stop))
    failing = loop.create_task(_stop_on_failure(server, runtime))
    hangup = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    reloading = loop.create_task(_reload(runtime, app.state.mask_store, hangup))
    await serving
    for task in (stopping, failing, reloading):
        task.cancel()
    return 1 if runtime.phase is Phase.FAILED else 0


async def _stop(server: uvicorn.Server, runtime: Runtime, stop: asyncio.Event) -> None:
    """Drain at the first signal; leave when that is done, takes too long, or at the second signal."""
    await stop.wait()
    stop.clear()
    runtime.begin_drain()
    log.info("draining", num_requests=runtime.num_accepted, timeout_s=runtime.settings.drain_timeout_s)
    idle, again = asyncio.create_task(runtime.idle.wait()), asyncio.create_task(stop.wait())
    await asyncio.wait(
        (idle, again), timeout=runtime.settings.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED
    )
    if not idle.done():
        log.warning("leaving with requests unanswered", num_requests=runtime.num_accepted)
        runtime.abandon()
    idle.cancel()
    again.cancel()
    server.should_exit = True


async def _reload(runtime: Runtime, mask_store: MaskStore, hangup: asyncio.Event) -> None:
    """Read again what files say of the service, whenever SIGHUP asks for it."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            if runtime.key_ring is not None:
                runtime.key_ring.reload()
            await runtime.settled.wait()
            await mask_store.reload()
        except Exception:
            log.exception("reloading failed")


async def _stop_on_failure(server: uvicorn.Server, runtime: Runtime) -> None:
    await runtime.settled.wait()
    if runtime.phase is Phase.FAILED:
        server.should_exit = True


async def _load(runtime: Runtime, make: Callable[[], Loaded]) -> None:
    try:
        loaded = await _in_daemon_thread(make)
    except LalmError as error:
        log.error("cannot start", reason=str(error))
        runtime.fail(str(error))
    except Exception:
        log.exception("cannot start")
        runtime.fail("loading failed; the log has the reason")
    else:
        runtime.become_ready(loaded)
        identity = loaded.engine.family.identity
        log.info("ready", model=identity.name, tasks=[entry.task.name for entry in loaded.catalogue])


async def _shut_down(runtime: Runtime, loading: asyncio.Task[None]) -> None:
    runtime.begin_drain()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    if runtime.loaded is not None:
        await asyncio.to_thread(runtime.loaded.engine.drain, runtime.settings.drain_timeout_s)
        await asyncio.to_thread(runtime.loaded.engine.stop)
    runtime.audio_pool.shutdown(wait=False, cancel_futures=True)


async def _in_daemon_thread(make: Callable[[], Loaded]) -> Loaded:
    """The result of `make`, run in a thread that does not keep the process from exiting while it loads."""
    outcome: Future[Loaded] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(make())
        except Exception as error:  # noqa: BLE001 - it goes to the one who waits
            outcome.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await asyncio.wrap_future(outcome)
