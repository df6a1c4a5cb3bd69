"""The selection of the rows that an optimizer step reads.

Everything follows from the seed; therefore a resumed run draws the same rows as an undisturbed run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.objectives import Side

SIDES: tuple[Side, Side] = ("forget", "retain")


@dataclass(frozen=True)
class Draw:
    """The place of a row in an optimizer step."""

    side: Side
    index: int
    micro_batch: int


class Sampler:
    """A sampler that draws rows by number.

    ``sizes`` are the row counts of the sets. ``sides`` are the sets that a term reads.
    """

    def __init__(
        self, sizes: Mapping[Side, int], sides: Collection[Side], batch_size: int, accumulation: int, seed: int
    ) -> None:
        self.sizes, self.sides, self.batch_size, self.seed = sizes, sides, batch_size, seed
        self.step_size = batch_size * accumulation
        self.steps_per_epoch = math.ceil(sizes["forget"] / self.step_size)

    def draw(self, step: int) -> list[Draw]:
        """Return the rows of an optimizer step.

        An epoch is one pass through the forget rows, in an order of its own.
        The retain rows come from a shuffled stream that continues across epochs.
        A step has as many retain rows as forget rows. The last batch of an epoch may be smaller.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        count = self.sizes["forget"]
        order = permutation(count, "forget", self.seed, epoch)[number * self.step_size : (number + 1) * self.step_size]
        draws: list[Draw] = []
        if "forget" in self.sides:
            draws += [Draw("forget", i, n // self.batch_size) for n, i in enumerate(order)]
        if "retain" in self.sides:
            first = epoch * count + number * self.step_size
            stream = [self._retain_at(first + n) for n in range(len(order))]
            draws += [Draw("retain", i, n // self.batch_size) for n, i in enumerate(stream)]
        return draws

    def drawn(self, steps: int, rank: int = 0, size: int = 1) -> dict[Side, list[int]]:
        """Return the rows that one of ``size`` processes reads in any step.

        The order is that of the files.
        """
        found: dict[Side, set[int]] = {side: set() for side in SIDES}
        for step in range(steps):
            for draw in self.draw(step):
                if draw.micro_batch % size == rank:
                    found[draw.side].add(draw.index)
        return {side: sorted(rows) for side, rows in found.items()}

    def _retain_at(self, place: int) -> int:
        count = self.sizes["retain"]
        return permutation(count, "retain", self.seed, place // count)[place % count]


@lru_cache(maxsize=4)  # two sets, each of which may go from one epoch to the next within a step
def permutation(count: int, *seed: object) -> tuple[int, ...]:
    """Return an order of ``count`` items that follows from the seed."""
    generator = torch.Generator().manual_seed(stable_hash("order", *seed))
    return tuple(torch.randperm(count, generator=generator).tolist())
