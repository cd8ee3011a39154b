"""The processes of a training: one, or those that `accelerate launch` started.

    accelerate launch --multi_gpu --num_processes 4 -m ahamask train recipe.toml

Every process holds the whole model and the same mask logits. It computes its share of a step, and only the
gradient of the gates crosses, so that all processes make the same step to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; `local_rank` counts those of this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    device: str = "cpu"  # of what the processes send each other

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows the progress."""
        return self.rank == 0

    def place(self, device: str) -> str:
        """The device of this process, where a recipe says `device`: "cuda" is its own GPU."""
        return f"cuda:{self.local_rank}" if device == "cuda" and self.count > 1 else device

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """What of `items` is for this process."""
        return items[self.rank :: self.count]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on the device it was on."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        reduced: Tensor = reduce(tensor.to(self.device), reduction="sum")
        return reduced.to(tensor.device)

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        return [float(value) for value in self.summed(torch.tensor(values, dtype=torch.float64))]

    def gathered(self, items: list[_Item]) -> list[_Item]:
        """The items of all processes, those of the first one first."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def wait(self) -> None:
        """Until every process is here."""
        self.sums(0.0)

    def leave(self) -> None:
        """End the connections: a process that exits with them open may abort. Nothing can be sent after."""
        if self.count == 1:
            return
        from accelerate import PartialState

        PartialState().destroy_process_group()


ALONE = Processes()


def launched(device: str) -> Processes:
    """The processes this one belongs to; a process that was started plainly is alone.

    device: where the recipe computes; processes on CPUs talk through gloo, on GPUs through NCCL.
    """
    from accelerate import PartialState  # slow to import

    state = PartialState(cpu=device == "cpu")
    return Processes(state.process_index, state.num_processes, state.local_process_index, str(state.device))
