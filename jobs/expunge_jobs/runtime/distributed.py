"""Several processes that do one step together, a GPU each; a step alone is a team of one. Communication is accelerate's.

What a step is given to do is dealt out by number, each process takes its share, and sums or lists are put together again.
Every process holds the whole model and makes the same optimizer step, so weights agree without being sent.
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
"""The variable with the file by which the processes of a team find each other."""
RENDEZVOUS_TIMEOUT = timedelta(hours=1)
"""How long one process waits for another, which may be fetching a model."""


def rank() -> int:
    """This process's number in its team; 0 is the one that reports and publishes."""
    return int(os.environ["RANK"]) if launched() else 0


def launched() -> bool:
    """Whether launch.py has started this process; RANK and WORLD_SIZE by themselves may be another launcher's."""
    return RENDEZVOUS_FILE in os.environ


def device() -> torch.device:
    """The GPU that this process was given, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class WorkerGroup:
    """A team of one, unless ``join`` makes it larger."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """Whether this process reports, writes checkpoints and publishes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Of these items, those that this process does."""
        return list(items[self.rank :: self.size])

    def each(self, items: Sequence[T], do: Callable[[list[T]], Iterable[R]]) -> list[R]:
        """``do`` gives a result for each item of this process's share; all processes' results, in the order of the items."""
        mine = list(do(self.share(items)))
        if self.size == 1:
            return mine
        from accelerate.utils import gather_object

        out: list[Any] = [None] * len(items)
        for number, results in gather_object([(self.rank, mine)]):
            out[number :: self.size] = results
        return out

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all processes."""
        if self.size == 1:
            return list(values)
        import torch

        return [float(v) for v in self._reduced(torch.tensor(values, dtype=torch.float64, device=device()))]

    def agrees(self, value: int) -> bool:
        """Whether it is the same in every process."""
        if self.size == 1:
            return True
        from accelerate.utils import gather_object

        return len(set(gather_object([value]))) == 1

    def any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return self.sum([float(value)])[0] > 0

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Every gradient becomes the sum of all processes' own; one that a process lacks counts as zero."""
        if self.size == 1:
            return
        import torch

        for parameter in parameters:
            mine = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = self._reduced(mine)

    def leave(self) -> None:
        """The end of what is done together."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def _reduced(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        reduced: Tensor = reduce(tensor, "sum")
        return reduced


def join() -> WorkerGroup:
    """The team that this process was started for (see launch.py)."""
    if not launched():
        return WorkerGroup()
    import torch
    from accelerate import PartialState

    gpus = torch.cuda.is_available()
    # By a file and not, as accelerate would, by a port that the whole network reaches.
    torch.distributed.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=f"file://{os.environ[RENDEZVOUS_FILE]}",
        rank=rank(),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=RENDEZVOUS_TIMEOUT,
    )
    state = PartialState(cpu=not gpus)
    return WorkerGroup(state.process_index, state.num_processes)
