"""What may go wrong between submitting a request and its answer.

InferenceError
├ QueueFullError         too many rows are waiting   .retry_after_s
├ EngineStoppedError     draining, stopped, or not started
├ OutOfMemoryError       the model had no memory for this request   .retry_after_s
├ PromptTooLongError     audio and instruction leave no room for the answer   .limit_tokens
└ SequenceFailedError    the model failed on this request; __cause__ has the reason, the message never
"""

from __future__ import annotations


class InferenceError(Exception):
    """Root of the engine's errors."""


class QueueFullError(InferenceError):
    """No room for the rows of this request; there should be some in about `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class EngineStoppedError(InferenceError):
    """The engine takes no requests: not started, draining or stopped."""


class OutOfMemoryError(InferenceError):
    """No memory for this request, even alone; with less beside it there may be some."""

    retry_after_s = 5.0

    def __init__(self) -> None:
        super().__init__("the model ran out of memory on this request; try again later")


class PromptTooLongError(InferenceError):
    """The prompt, audio included, is longer than `limit_tokens`."""

    def __init__(self, num_tokens: int, limit_tokens: int) -> None:
        super().__init__(f"the prompt takes {num_tokens} tokens, at most {limit_tokens} are allowed")
        self.limit_tokens = limit_tokens


class SequenceFailedError(InferenceError):
    """The model failed on this request, and on no other."""

    def __init__(self, task: str) -> None:
        super().__init__(f"the model failed on task {task!r}")
        self.task = task
