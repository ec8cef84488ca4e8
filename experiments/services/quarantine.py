"""Quarantine: what could not be scored is scored by hand, or left out, before new instructions are made by the verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction

from experiments.models import Iteration, Verdict
from experiments.querysets import hold_back, tau_of
from experiments.querysets_reviews import is_decided
from trainer.errors import ConfigError
from trainer.parsing import HIGHEST, LOWEST
from trainer.plan import Step
from trainer.records import Label

if TYPE_CHECKING:
    from django.contrib.auth.models import User

TOO_LATE = "New instructions were made by the verdicts of iteration {number} already: they stay as they are."


def score_by_hand(verdict: Verdict, *, teacher: float, student: float, by: User) -> Verdict:
    """Give a quarantined instruction its two scores, and by them its label; scores given by hand may be given again.

    Raises ConfigError for scores out of range, a verdict of the referee's own, or one that came to use.
    """
    wrong = {
        side: f"From {LOWEST:g} to {HIGHEST:g}."
        for side, score in (("teacher", teacher), ("student", student))
        if not LOWEST <= score <= HIGHEST
    }
    if wrong:
        raise ConfigError(f"Scores are from {LOWEST:g} to {HIGHEST:g}.", fields=wrong)
    with transaction.atomic():
        verdict = Verdict.objects.select_for_update(of=("self",)).select_related("iteration__run").get(pk=verdict.pk)
        _refuse_late(verdict.iteration)
        if verdict.label != Label.QUARANTINED and not verdict.by_hand:
            raise ConfigError("The referee scored this instruction itself: its verdict stays.")
        run = verdict.iteration.run
        tau = tau_of(run, verdict.iteration.number, default=run.run_config().loop.tau)
        verdict.teacher_score, verdict.student_score, verdict.discrepancy = teacher, student, teacher - student
        verdict.label = Label.HARD if teacher - student >= tau else Label.EASY
        verdict.by_hand, verdict.left_out, verdict.ruled_by = True, False, by
        verdict.save()
    return verdict


def leave_out(iteration: Iteration, *, by: User, verdicts: list[int] | None = None) -> int:
    """Let quarantined instructions of an iteration stay so, and not be judged again: these verdicts, or all. Gives how many.

    Raises ConfigError where the verdicts came to use.
    """
    with transaction.atomic():
        _refuse_late(iteration)
        waiting = Verdict.objects.filter(iteration=iteration, label=Label.QUARANTINED, left_out=False)
        if verdicts is not None:
            waiting = waiting.filter(pk__in=verdicts)
        return waiting.update(left_out=True, ruled_by=by)


def _refuse_late(iteration: Iteration) -> None:
    """Locks the iteration's row, so that of several people one rules at a time, and what could take up its verdicts meanwhile."""
    Iteration.objects.select_for_update().get(pk=iteration.pk)
    hold_back(iteration.run, Step.CANDIDATES)
    if is_decided(iteration):
        raise ConfigError(TOO_LATE.format(number=iteration.number))
