"""Confidence intervals over seeds.

The intervals are Student's t with n - 1 degrees of freedom, on per-seed values. Differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and its interval.

    ``low`` and ``high`` are None where there is no interval: for a single value, and for values without a spread.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        return None if self.low is None else self.mean - self.low


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of at least one value, with its interval at ``LEVEL``."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2 or max(values) == min(values):  # values without a spread say nothing of their spread
        return Interval(mean, None, None, n)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_quantile((1 + LEVEL) / 2, n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t, for a probability above 0.50.

    The method is bisection on the distribution function.
    """
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, degrees: int) -> float:
    """Return the distribution function of Student's t.

    The arguments are t >= 0 and whole degrees of freedom. The function is a finite sum in an angle. The angle is
    atan(t / sqrt(degrees)) (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = math.cos(angle) if degrees % 2 else 1.0
    total = 0.0
    if degrees > 1:
        for k in range(degrees // 2 if degrees % 2 == 0 else (degrees - 1) // 2):
            if k:
                term *= square * ((2 * k - 1) / (2 * k) if degrees % 2 == 0 else (2 * k) / (2 * k + 1))
            total += term
    inside = sine * total if degrees % 2 == 0 else 2 / math.pi * (angle + sine * total)
    return (1 + inside) / 2
