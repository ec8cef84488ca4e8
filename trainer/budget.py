"""A budget while calls are made on it: nothing is permitted that could go over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.calls import Call
from trainer.prices import NANODOLLARS


@dataclass(kw_only=True)
class Purse:
    """What is spent and held of a budget. An unset cap is no cap.

    spent: calls that were answered, or may have been paid without an answer. held: calls that are permitted and not done, at the
    most they can cost. Units: calls and nanodollars.
    """

    owner: str
    most_calls: int | None
    most_nanodollars: int | None
    spent_calls: int = 0
    spent_nanodollars: int = 0
    held_calls: int = 0
    held_nanodollars: int = 0

    def take(self, call: Call) -> bool:
        """Hold what the call can cost at most. False, and nothing held, where that could go over the budget."""
        if not self._has_room(call):
            return False
        self.held_calls += 1
        self.held_nanodollars += call.most_nanodollars
        return True

    def give_back(self, call: Call) -> None:
        self.held_calls -= 1
        self.held_nanodollars -= call.most_nanodollars

    def _has_room(self, call: Call) -> bool:
        calls, nanodollars = self.spent_calls + self.held_calls, self.spent_nanodollars + self.held_nanodollars
        return (self.most_calls is None or calls < self.most_calls) and (
            self.most_nanodollars is None or nanodollars + call.most_nanodollars <= self.most_nanodollars
        )

    def refusal(self, call: Call) -> str:
        """Why a call is refused, where waiting for those under way would not help either; else ""."""
        if self._has_room(call) or self.held_calls:
            return ""
        if self.most_calls is not None and self.spent_calls >= self.most_calls:
            return f"The budget of {self.owner} is spent: {self.spent_calls:,} of {self.most_calls:,} calls are made. Raise it to go on."
        spent, most, wanted = (n / NANODOLLARS for n in (self.spent_nanodollars, self.most_nanodollars or 0, call.most_nanodollars))
        return (
            f"The budget of {self.owner} has no room for the next call, which can cost up to ${wanted:,.4f}: "
            f"${spent:,.4f} of ${most:,.4f} are spent. Raise it to go on."
        )


def take_from_all(purses: Sequence[Purse], call: Call) -> bool:
    """Hold a call in every budget it counts in, or in none."""
    taken: list[Purse] = []
    for purse in purses:
        if not purse.take(call):
            for earlier in taken:
                earlier.give_back(call)
            return False
        taken.append(purse)
    return True
