"""The worker group: processes that do one step together, one GPU each.

A step without other processes has a group of one. Communication goes through accelerate.
The items of a step are distributed by number. Each process does its share, and sums or lists are combined again.
Every process holds the whole model and makes the same optimizer step; therefore weights agree without being sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
RENDEZVOUS_FILE = "EXPUNGE_MEETING"
"""Environment variable that names the rendezvous file of a worker group."""
RENDEZVOUS_TIMEOUT = timedelta(hours=1)
"""Timeout of a process that waits for another process, which may be fetching a model."""


def rank() -> int:
    """Return the rank of this process in its worker group.

    Rank 0 reports and publishes.
    """
    return int(os.environ["RANK"]) if launched() else 0


def launched() -> bool:
    """Return whether launch.py has started this process.

    RANK and WORLD_SIZE alone may come from another launcher.
    """
    return RENDEZVOUS_FILE in os.environ


def device() -> torch.device:
    """Return the GPU of this process, or the CPU if no GPU is available."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class WorkerGroup:
    """A worker group, of size one unless ``join`` returns a larger group."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """Return whether this rank reports, writes checkpoints and publishes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's share of the items."""
        return list(items[self.rank :: self.size])

    def each(self, items: Sequence[T], do: Callable[[list[T]], Iterable[R]]) -> list[R]:
        """Return the results of all processes, in the order of the items.

        ``do`` gives one result for each item of this process's share.
        """
        mine = list(do(self.share(items)))
        if self.size == 1:
            return mine
        from accelerate.utils import gather_object

        out: list[Any] = [None] * len(items)
        for number, results in gather_object([(self.rank, mine)]):
            out[number :: self.size] = results
        return out

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return each value's sum over all processes."""
        if self.size == 1:
            return list(values)
        import torch

        return [float(v) for v in self._reduced(torch.tensor(values, dtype=torch.float64, device=device()))]

    def agrees(self, value: int) -> bool:
        """Return whether the value is the same in every process."""
        if self.size == 1:
            return True
        from accelerate.utils import gather_object

        return len(set(gather_object([value]))) == 1

    def any(self, value: bool) -> bool:
        """Return whether the value is true in any process."""
        return self.sum([float(value)])[0] > 0

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over all processes.

        A gradient that a process lacks counts as zero.
        """
        if self.size == 1:
            return
        import torch

        for parameter in parameters:
            mine = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self._reduced(mine)

    def leave(self) -> None:
        """Destroy the process group after the common work."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def _reduced(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        reduced: Tensor = reduce(tensor, "sum")
        return reduced


def join() -> WorkerGroup:
    """Join the worker group that this process was started for (see launch.py)."""
    if not launched():
        return WorkerGroup()
    import torch
    from accelerate import PartialState

    gpus = torch.cuda.is_available()
    # accelerate would rendezvous by a port that the whole network reaches; therefore use a file.
    torch.distributed.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=f"file://{os.environ[RENDEZVOUS_FILE]}",
        rank=rank(),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=RENDEZVOUS_TIMEOUT,
    )
    state = PartialState(cpu=not gpus)
    return WorkerGroup(state.process_index, state.num_processes)
