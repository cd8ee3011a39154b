"""Decode steps of a few sizes, recorded once and then replayed: on a GPU one launch instead of hundreds.

The size of a step is a number of slots and a number of positions; it covers the first so many of both. What
changes from step to step is written into buffers that stay where they are; the gates of the head masks are
such a buffer too (`padded.py`), written when a row is prefilled. A slot without a part in the step gets token
0 at the last position of all, which no sequence reaches, and what comes out of it is not looked at.

`capture_on_cuda` records a CUDA graph. Anything else that runs a function again will do in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import torch
from torch import Tensor

from service.inference.chunk import Chunk
from service.inference.padded import PaddedPass

Step = Callable[[], Tensor]
# Runs a step, and returns what runs it again: on what its inputs hold by then, into the same output.
Capture = Callable[[Step], Step]

_FEWEST_KEYS = 256

log = structlog.get_logger(__name__)


class DecodeGraphs:
    """The decode steps of a padded pass, of every size that its cache has room for.

    next_tokens: from last hidden states [batch, hidden] to token ids int64 [batch], on the device.
    num_slots, num_positions: what the cache holds of; a sequence may have one position less.
    """

    def __init__(
        self,
        decoder: PaddedPass,
        next_tokens: Callable[[Tensor], Tensor],
        num_slots: int,
        num_positions: int,
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._next_tokens = next_tokens
        self._slot_counts = _doubling(1, num_slots)
        self._key_counts = _doubling(_FEWEST_KEYS, num_positions - 1)
        self._idle_position = num_positions - 1
        self._slots = torch.arange(num_slots, device=device)
        # Tokens and positions of each slot: on the device, and where they are written before they go there.
        self._inputs = torch.zeros(2, num_slots, dtype=torch.int64, device=device)
        self._host_inputs = torch.zeros(2, num_slots, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._steps: dict[tuple[int, int], Step] = {}

    def record(self, capture: Capture) -> bool:
        """Capture every size, the largest first; False, and nothing is kept, where one cannot be or errs.

        The cache must have all its room by now, and hold nothing.
        """
        try:
            for num_slots in reversed(self._slot_counts):
                for num_keys in reversed(self._key_counts):
                    self._write([], [], num_slots)
                    step = self._step(num_slots, num_keys)
                    recorded = capture(step)
                    if not torch.equal(recorded(), step()):
                        raise RuntimeError(f"replayed, a step of {num_slots} slots gives other tokens")
                    self._steps[num_slots, num_keys] = recorded
        except RuntimeError as error:  # torch's, out of memory among them
            self._steps.clear()
            log.warning("decode steps are not captured", error=str(error))
            return False
        log.info("decode steps captured", num_graphs=len(self._steps))
        return True

    def decode(self, input_ids: Sequence[int], chunks: Sequence[Chunk]) -> list[int]:
        """Add one token to each row, given in the order of their slots; the next token of each."""
        num_slots = _at_least(self._slot_counts, chunks[-1].slot + 1)
        num_keys = _at_least(self._key_counts, max(chunk.stop for chunk in chunks))
        self._write(input_ids, chunks, num_slots)
        next_ids: list[int] = self._steps[num_slots, num_keys]().tolist()
        return [next_ids[chunk.slot] for chunk in chunks]

    def _write(self, input_ids: Sequence[int], chunks: Sequence[Chunk], num_slots: int) -> None:
        host = self._host_inputs[:, :num_slots]
        host[0] = 0
        host[1] = self._idle_position
        if chunks:
            slots = [chunk.slot for chunk in chunks]
            host[:, slots] = torch.tensor([input_ids, [chunk.start for chunk in chunks]])
        # The step before has been waited for, so the last copy is over.
        self._inputs[:, :num_slots].copy_(host, non_blocking=True)

    def _step(self, num_slots: int, num_keys: int) -> Step:
        def step() -> Tensor:
            latest, positions = self._inputs[:, :num_slots]
            rows = slice(0, num_slots)
            return self._next_tokens(
                self._decoder.decode_rows(latest, positions, self._slots[rows], rows, num_keys)
            )

        return step


def capture_for(device: torch.device) -> Capture | None:
    """How steps are recorded on `device`; None where computing them costs no launches."""
    return capture_on_cuda(device) if device.type == "cuda" else None


def capture_on_cuda(device: torch.device) -> Capture:
    """Captures CUDA graphs on `device`, which share their memory: only one of them is replayed at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()  # what libraries set up in their first call cannot be captured
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                output = step()

        def replay() -> Tensor:
            with torch.cuda.device(device):
                graph.replay()
            return output

        return replay

    return capture


def _doubling(first: int, last: int) -> list[int]:
    """`first`, twice as much, and so on below `last`; and `last`."""
    sizes = [last]
    while first < last:
        sizes.insert(-1, first)
        first *= 2
    return sizes


def _at_least(sizes: Sequence[int], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
