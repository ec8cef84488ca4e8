"""What a benchmark gives: figures beside their bars, and two sides that were run in turn."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TextIO

started = monotonic()


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a figure is held against: bounds of its value, of its ratio, or both."""

    at_most: float | None = None
    at_least: float | None = None
    ratio_at_least: float | None = None

    def words(self, unit: str) -> str:
        parts = [
            f"<= {self.at_most:g} {unit}" if self.at_most is not None else "",
            f">= {self.at_least:g} {unit}" if self.at_least is not None else "",
            f">= {self.ratio_at_least:g} x" if self.ratio_at_least is not None else "",
        ]
        return " and ".join(part for part in parts if part)

    def holds(self, value: float, ratio: float | None) -> bool:
        return (
            (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
            and (self.ratio_at_least is None or (ratio is not None and ratio >= self.ratio_at_least))
        )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the report. `against` says what the other side is and what it reached; `ratio` is ours to it."""

    name: str
    value: float
    unit: str
    bar: Bar
    against: str = ""
    ratio: float | None = None

    def line(self) -> str:
        return json.dumps(
            {
                "name": self.name,
                "value": _rounded(self.value),
                "unit": self.unit,
                "bar": self.bar.words(self.unit),
                "holds": self.bar.holds(self.value, self.ratio),
                "against": self.against or None,
                "ratio": None if self.ratio is None else _rounded(self.ratio),
            }
        )


@dataclass(frozen=True)
class Pair:
    """What both sides reached in one round."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def in_turn(ours: Callable[[int], float], theirs: Callable[[int], float], *, rounds: int = 5, unit: str = "/s") -> Pair:
    """Runs both sides in turn, whoever was second being first in the next round; gives the pair with the median ratio."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            their_value = theirs(number)
            our_value = ours(number)
        else:
            our_value = ours(number)
            their_value = theirs(number)
        pairs.append(Pair(our_value, their_value))
        say(f"round {number + 1} of {rounds}: ours {our_value:.4g}{unit}, theirs {their_value:.4g}{unit}, {pairs[-1].ratio:.3g} x")
    return sorted(pairs, key=lambda pair: pair.ratio)[(rounds - 1) // 2]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def say(text: str, *, to: TextIO = sys.stderr) -> None:
    """Tell how far a benchmark is, beside the report."""
    print(f"  {monotonic() - started:6.1f} s  {text}", file=to, flush=True)


def _rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
