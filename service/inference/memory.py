"""When the model runs out of memory: how that is seen, and how large a batch may be afterwards."""

from __future__ import annotations

import torch

# Decode steps without trouble after which the batch may have one row more.
_GROW_AFTER_STEPS = 32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: that of a GPU, or that of the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's allocator for CPUs raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


class BatchLimit:
    """The rows that a batch may have: fewer after memory ran out, `max_rows` again after a calm time."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._num_calm_steps = 0
        self.num_rows = max_rows

    def shrink(self, num_rows: int) -> None:
        """A call on `num_rows` rows did not fit into the memory."""
        self._num_calm_steps = 0
        half = num_rows if num_rows > 1 else self.num_rows
        self.num_rows = max(1, min(self.num_rows, half // 2))

    def step_done(self) -> None:
        """A decode step has ended, well or badly."""
        if self.num_rows == self._max_rows:
            return
        self._num_calm_steps += 1
        if self._num_calm_steps == _GROW_AFTER_STEPS:
            self._num_calm_steps = 0
            self.num_rows += 1
