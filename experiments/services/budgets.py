"""Budgets: what a run, or all runs on an endpoint, may spend; raising one lets go on what had stopped at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models import Count, Sum

from experiments.models import Budget, Endpoint, Job, LedgerLine, PendingCall, Run
from experiments.querysets_calls import over_budget_jobs
from experiments.services import jobs
from trainer.config import endpoint_of
from trainer.errors import ConfigError
from trainer.forecast import ROLE_OF
from trainer.plan import Step

if TYPE_CHECKING:
    from django.contrib.auth.models import User


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What calls came to. unanswered: sent without an answer, at the most they can have cost; reserved: on their way."""

    calls: int
    nanodollars: int
    unanswered: int
    unanswered_nanodollars: int
    saved: int
    saved_nanodollars: int
    reserved: int
    reserved_nanodollars: int

    @property
    def counted_calls(self) -> int:
        """What counts in a budget: calls that were paid, or may have been."""
        return self.calls + self.unanswered

    @property
    def counted_nanodollars(self) -> int:
        return self.nanodollars + self.unanswered_nanodollars


SUMMED = ("calls", "nanodollars", "unanswered", "unanswered_nanodollars", "saved", "saved_nanodollars")


def spent(of: Run | Endpoint) -> Spent:
    """What a run, or all runs on an endpoint, have spent so far."""
    lines = LedgerLine.objects.filter(run=of) if isinstance(of, Run) else LedgerLine.objects.filter(endpoint=of.name)
    sums = lines.aggregate(**{name: Sum(name, default=0) for name in SUMMED})
    held = PendingCall.objects.filter(line__in=lines).aggregate(calls=Count("pk"), nanodollars=Sum("most_nanodollars", default=0))
    return Spent(**{name: int(sums[name]) for name in SUMMED}, reserved=held["calls"], reserved_nanodollars=int(held["nanodollars"]))


def has_room(budget: Budget | None, spent: Spent) -> bool:
    """Whether more may be spent; without a budget, always."""
    if budget is None:
        return True
    calls, nanodollars = budget.most_calls, budget.most_nanodollars
    return (calls is None or spent.counted_calls < calls) and (nanodollars is None or spent.counted_nanodollars < nanodollars)


def set_budget(
    *, run: Run | None = None, endpoint: Endpoint | None = None, most_calls: int | None, most_nanodollars: int | None, by: User
) -> int:
    """Set the budget of a run or of an endpoint; None is no cap. What stopped at it, and has room now, is queued again.

    Gives how many runs go on.
    """
    with transaction.atomic():
        owner = Budget.objects.filter(run=run, endpoint=endpoint)
        if most_calls is None and most_nanodollars is None:
            owner.delete()
        else:
            caps = {"most_calls": most_calls, "most_nanodollars": most_nanodollars, "set_by": by}
            Budget.objects.update_or_create(run=run, endpoint=endpoint, defaults=caps)
        waiting = over_budget_jobs()
        return _go_on([job for job in (waiting.filter(stage__iteration__run=run) if run else waiting) if _may_go_on(job, endpoint)])


def _may_go_on(job: Job, endpoint: Endpoint | None) -> bool:
    """Whether every budget that the job's calls count in has room; with `endpoint`, only of jobs that call it."""
    run = job.stage.iteration.run
    try:
        name = endpoint_of(run.run_config(), ROLE_OF[Step(job.step)])
    except ConfigError:  # a config of another version, which no worker could read either
        return False
    if endpoint is not None and name != endpoint.name:
        return False
    budgets = Budget.objects.filter(run=run) | Budget.objects.filter(endpoint__name=name)
    return all(has_room(budget, spent(budget.run or budget.endpoint or run)) for budget in budgets.select_related("run", "endpoint"))


def _go_on(stopped: list[Job]) -> int:
    runs = {job.stage.iteration.run_id for job in stopped}
    for run_id in sorted(runs):
        jobs.advance(run_id, retry=True)
    return len(runs)
