"""Length bias: whether the referee lets the longer response win, and who would win if both were equally long.

    scored by the referee = won by the longer + won by the shorter + scored alike + equally long

Lengths are in characters. The teacher wins where d > 0, the student where d < 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.models import Iteration
from experiments.querysets_referee import LengthGroup, length_groups
from trainer.statistics import Estimate, wilson, win_share_at_equal_length

LEAST = 10
"""Of fewer verdicts nothing is told."""


@dataclass(frozen=True, kw_only=True)
class LengthBias:
    """Verdicts that the referee gave in one iteration. Shares are None where there are too few to tell.

    longer_share: of those that one of two unequal responses won; teacher_share: ties count half; controlled: read off at equal length.
    """

    longer_won: int
    shorter_won: int
    scored_alike: int
    same_length: int
    longer_share: Estimate | None
    teacher_share: Estimate | None
    controlled: Estimate | None
    least: int = LEAST

    @property
    def won(self) -> int:
        return self.longer_won + self.shorter_won

    @property
    def scored(self) -> int:
        return self.won + self.scored_alike + self.same_length


def read_length_bias(iteration: Iteration) -> LengthBias:
    """The length bias of an iteration, in one query."""
    return length_bias(length_groups(iteration))


def length_bias(groups: Sequence[LengthGroup]) -> LengthBias:
    def count(*products: int) -> int:
        return sum(group.n for group in groups if group.difference and _sign(group.winner * group.difference) in products)

    longer, shorter, alike = count(1), count(-1), count(0)
    same = sum(group.n for group in groups if not group.difference)
    wins, differences, counts = [(g.winner + 1) / 2 for g in groups], [g.difference for g in groups], [g.n for g in groups]
    scored = longer + shorter + alike + same
    won_by_teacher = sum(win * n for win, n in zip(wins, counts, strict=True))
    return LengthBias(
        longer_won=longer,
        shorter_won=shorter,
        scored_alike=alike,
        same_length=same,
        longer_share=wilson(longer, longer + shorter) if longer + shorter >= LEAST else None,
        teacher_share=wilson(won_by_teacher, scored) if scored >= LEAST else None,
        controlled=win_share_at_equal_length(wins, differences, counts=counts) if scored >= LEAST else None,
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
