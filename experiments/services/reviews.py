"""Reviews: people agree with the referee's verdicts or overrule them, and what is made next goes by what most of them say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction

from experiments.models import Iteration, Review, Verdict
from experiments.models.verdict import EASY, HARD
from experiments.querysets import hold_back
from experiments.querysets_reviews import SPLIT, is_decided, reviewed
from trainer.errors import ConfigError
from trainer.plan import Step

if TYPE_CHECKING:
    from django.contrib.auth.models import User

MOST_CHARACTERS = 2000
"""Of a comment."""
UNSCORED = "The referee could not score this instruction: score it by hand on the run's Referee page."
BY_HAND = "A person scored this instruction: score it again on the run's Referee page, if it should be otherwise."


def why_not(verdict: Verdict) -> str:
    """Why a verdict cannot be reviewed, in words; "" where it can."""
    if verdict.by_hand:
        return BY_HAND
    return "" if verdict.label in (HARD, EASY) else UNSCORED


def review(verdict: Verdict, *, label: str, comment: str = "", by: User) -> Review:
    """Rule that a verdict is hard or easy; who has ruled already rules anew.

    Raises ConfigError for another label, a comment too long, or a verdict that the referee did not give.
    """
    if label not in (HARD, EASY):
        raise ConfigError(f"A review says hard or easy, not {label!r}.", fields={"label": "Hard or easy."})
    if len(comment) > MOST_CHARACTERS:
        text = f"A comment has at most {MOST_CHARACTERS:,} characters, not {len(comment):,}."
        raise ConfigError(text, fields={"comment": text})
    with transaction.atomic():
        verdict = _locked(verdict)
        if problem := why_not(verdict):
            raise ConfigError(problem)
        found, _ = Review.objects.update_or_create(verdict=verdict, reviewer=by, defaults={"label": label, "comment": comment})
        _overrule(verdict)
    return found


def withdraw(verdict: Verdict, *, by: User) -> bool:
    """Take back one's own review; False where there was none."""
    with transaction.atomic():
        verdict = _locked(verdict)
        deleted, _ = Review.objects.filter(verdict=verdict, reviewer=by).delete()
        _overrule(verdict)
    return bool(deleted)


def _locked(verdict: Verdict) -> Verdict:
    """The verdict as it is now. Of several who rule in an iteration one goes at a time, and no candidate is written meanwhile."""
    iteration = Iteration.objects.select_for_update().get(pk=verdict.iteration_id)
    hold_back(iteration.run, Step.CANDIDATES)
    return Verdict.objects.select_related("iteration").get(pk=verdict.pk)


def _overrule(verdict: Verdict) -> None:
    """Let the verdict be the one that most reviewers gave, in what comes next: not once something came of it."""
    if is_decided(verdict.iteration):
        return
    ruling = reviewed(Verdict.objects.filter(pk=verdict.pk)).values_list("ruling", flat=True).first() or SPLIT
    Verdict.objects.filter(pk=verdict.pk).update(overruled_to=ruling if ruling != verdict.label else "")
