"""What the benchmark asks of every peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.jobs import Job, Recording, Task


@dataclass(frozen=True)
class Answer:
    """What a peer answered.

    after_first_token_s: how long before its end the answer had its first token; None if unknown.
    inside_s: what encoder, prefill and decode took, by the peer's own clock; None if unknown.
    """

    text: str
    after_first_token_s: float | None = None
    inside_s: float | None = None
    num_refused: int = 0
    error: str | None = None


class Peer(Protocol):
    """One way to answer jobs, in processes of its own."""

    @property
    def key(self) -> str:
        """Short name, as in `--peers`."""

    @property
    def title(self) -> str:
        """What it is, for the table."""

    @property
    def uses_head_masks(self) -> bool:
        """Whether tasks are selected by head mask; by instruction if not."""

    @property
    def pid(self) -> int:
        """The process whose tree is the peer."""

    async def start(self) -> None:
        """Return when requests can be answered.

        Raises:
            PeerError: it cannot be started here; the message says why.
        """

    async def answer(self, job: Job) -> Answer:
        """Answer one request; any number at a time."""

    async def answer_tasks(self, recording: Recording, tasks: Sequence[Task]) -> list[Answer]:
        """Answer several tasks on one recording, as fast as this peer can."""

    async def stop(self) -> None:
        """End the processes."""


class PeerError(Exception):
    """A peer cannot be started; the message says why."""
