"""Shares with their 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054
"""Standard errors to each side of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from n observations."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int) -> Estimate | None:
    """A share with Wilson's score interval; None where there is nothing to count.

    It stays within 0..1 and keeps its width at a share of 0 or 1, where the usual interval would shrink to a point.
    """
    if n <= 0:
        return None
    share, z2 = successes / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(share, low, high, n)
