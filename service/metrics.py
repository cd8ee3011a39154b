"""Every Prometheus series of the service."""

from __future__ import annotations

from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from lalm.head_mask import ModelIdentity
from service.catalogue import Catalogue
from service.inference.sequence import FinishReason, Sequence
from service.settings import Settings

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From one millisecond to a minute, three buckets a decade.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


class Metrics:
    """The series of one service, in a registry of its own; safe to update from any thread.

    The label `task` takes the names of the catalogue and `unknown`, whatever clients ask for.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        self._requests = Counter(
            "ahamask_requests", "Requests by task and HTTP status.", ["task", "status"], registry=registry
        )
        self._total = Histogram(
            "ahamask_request_seconds",
            "Seconds from a request's first byte to its answer, upload included; answered requests.",
            ["task"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._audio_decoding = self._seconds("audio_decoding", "a request's audio is decoded, wait included")
        self._queue = self._seconds("queue", "a row waits for a slot")
        self._encoder = self._seconds("encoder", "one pass of the audio encoder takes")
        self._prefill = self._seconds("prefill", "one first pass of the decoder takes")
        self._decode = self._seconds("decode", "a row's answer takes after its prefill")
        self._decode_step = self._seconds("decode_step", "one decode step takes, a token for every row")

        self._rows = Counter(
            "ahamask_rows", "Rows by task and how they ended.", ["task", "finish_reason"], registry=registry
        )
        self._waiting = Gauge("ahamask_waiting", "Rows waiting for a slot.", registry=registry)
        self._running = Gauge("ahamask_running", "Rows in slots.", registry=registry)
        self._out_of_memory = Counter(
            "ahamask_out_of_memory",
            "Passes of the model that did not fit into the memory.",
            registry=registry,
        )
        self._slots = Gauge("ahamask_slots", "Slots there are.", registry=registry)
        self._audio_seconds = Counter("ahamask_audio_seconds", "Seconds of audio decoded.", registry=registry)
        self._audio_cache = Counter(
            "ahamask_audio_cache",
            "Recordings by whether their encoded audio was at hand: hit or miss.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("hit", "miss"):
            self._audio_cache.labels(outcome)
        self._audio_cache_bytes = Gauge(
            "ahamask_audio_cache_bytes", "Memory of the encoded audio that is kept.", registry=registry
        )
        self._output_tokens = Counter(
            "ahamask_output_tokens", "Tokens generated.", ["task"], registry=registry
        )
        self._active_heads = Gauge(
            "ahamask_active_heads", "Heads that a task's head mask keeps.", ["task"], registry=registry
        )
        self._reloads = Counter(
            "ahamask_reloads",
            "Reloads of head masks or API keys by outcome: ok, or failed, when the old ones stay.",
            ["what", "outcome"],
            registry=registry,
        )
        for what in ("head_masks", "api_keys"):
            for outcome in ("ok", "failed"):
                self._reloads.labels(what, outcome)
        self._model = Info("ahamask_model", "The model that is loaded.", registry=registry)

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(
            f"ahamask_{name}_seconds", f"Seconds {what}.", buckets=_SECONDS, registry=self.registry
        )

    def render(self) -> bytes:
        """Every series in Prometheus' text format, of type CONTENT_TYPE."""
        return generate_latest(self.registry)

    def describe(self, identity: ModelIdentity, catalogue: Catalogue, settings: Settings) -> None:
        """Set what is constant once the model is loaded."""
        self._model.info(
            {
                "name": identity.name,
                "family": identity.family,
                "fingerprint": identity.fingerprint,
                "num_layers": str(identity.num_layers),
                "num_heads": str(identity.num_heads),
                "device": settings.device,
                "dtype": settings.dtype,
            }
        )
        self._slots.set(settings.max_slots)
        self.describe_tasks(catalogue)

    def describe_tasks(self, catalogue: Catalogue) -> None:
        """Set what holds until the catalogue changes."""
        self._active_heads.clear()
        for entry in catalogue:
            self._active_heads.labels(entry.task.name).set(entry.head_mask.num_active)
            for reason in FinishReason:  # of a series that begins with its first event no increase is seen
                self._rows.labels(entry.task.name, reason.value)

    def count_reload(self, what: Literal["head_masks", "api_keys"], *, ok: bool) -> None:
        """What a file says of a running service was read again; when not `ok`, the old content stays."""
        self._reloads.labels(what, "ok" if ok else "failed").inc()

    def observe_request(self, *, task: str, status: int, duration_s: float) -> None:
        """A request for `task` ended with `status`."""
        self._requests.labels(task, str(status)).inc()
        if status == 200:
            self._total.labels(task).observe(duration_s)

    def observe_audio(self, *, duration_s: float, decoding_s: float) -> None:
        """`duration_s` seconds of audio were made ready for the engine in `decoding_s`."""
        self._audio_seconds.inc(duration_s)
        self._audio_decoding.observe(decoding_s)

    # What follows is the EngineObserver that the engine reports to.

    def on_queue(self, num_waiting: int, num_running: int) -> None:
        """Rows waiting and rows in slots."""
        self._waiting.set(num_waiting)
        self._running.set(num_running)

    def on_encode(self, seconds: float, num_audios: int) -> None:  # noqa: ARG002
        """One pass of the audio encoder."""
        self._encoder.observe(seconds)

    def on_audio_cache(self, num_hits: int, num_misses: int, num_bytes: int) -> None:
        """Clips of newcomers that were, and were not, encoded already; what is kept of them now."""
        self._audio_cache.labels("hit").inc(num_hits)
        self._audio_cache.labels("miss").inc(num_misses)
        self._audio_cache_bytes.set(num_bytes)

    def on_prefill(self, seconds: float, num_rows: int) -> None:  # noqa: ARG002
        """One first pass of the decoder."""
        self._prefill.observe(seconds)

    def on_decode_step(self, seconds: float, num_rows: int) -> None:  # noqa: ARG002
        """One decode step."""
        self._decode_step.observe(seconds)

    def on_out_of_memory(self, max_rows: int) -> None:  # noqa: ARG002
        """A pass of the model did not fit into the memory."""
        self._out_of_memory.inc()

    def on_row_finished(self, sequence: Sequence) -> None:
        """A row ended; a stage that it did not complete is not observed."""
        reason = sequence.finish_reason
        assert reason is not None
        self._rows.labels(sequence.task, reason.value).inc()
        self._output_tokens.labels(sequence.task).inc(len(sequence.output_ids))
        timings_ms = sequence.times.timings_ms()
        if sequence.times.admitted_s is not None:
            self._queue.observe(timings_ms["queue"] / 1e3)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._decode.observe(timings_ms["decode"] / 1e3)
