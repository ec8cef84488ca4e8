"""Budgets: what a run, or all runs on an endpoint, have spent, and whether there is room for more."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Count, Q, QuerySet, Sum

from experiments.models import Budget, Endpoint, Job, LedgerLine, PendingCall, Run
from experiments.services.purses import purses, purses_of
from trainer.budget import Purse
from trainer.config import endpoint_of
from trainer.errors import ConfigError
from trainer.plan import ROLE_OF, Step


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


def is_spent(budget: Budget) -> bool:
    """Whether a cap of the budget is reached."""
    return any(not _has_room(purse) for purse in purses(Budget.objects.filter(pk=budget.pk)))


def has_new_room(job: Job) -> bool:
    """Whether a budget that the job's calls count in was set after the job began, and all of them have room now.

    Room alone would not do: a budget with too little left for the next call would stop one job after another. Locks the budgets for
    the transaction.
    """
    endpoint, run_id = _endpoint_of(job), job.stage.iteration.run_id
    if not endpoint or job.started_at is None:
        return False
    found = purses_of(endpoint, run_id=run_id)
    return all(map(_has_room, found)) and _budgets_of(endpoint, run_id).filter(set_at__gt=job.started_at).exists()


def budgets_in_the_way(job: Job) -> list[Budget]:
    """The budgets a job stopped at: those that are spent, else the one with the least money left, since a call costs the same in each."""
    budgets = _budgets_of(_endpoint_of(job), job.stage.iteration.run_id).select_related("run", "endpoint").order_by("pk")
    found = [(budget, purse) for budget in budgets for purse in purses(Budget.objects.filter(pk=budget.pk))]
    reached = [budget for budget, purse in found if not _has_room(purse)]
    left = {budget: purse.most_nanodollars - purse.spent_nanodollars for budget, purse in found if purse.most_nanodollars is not None}
    return reached or sorted(left, key=left.__getitem__)[:1]


def _endpoint_of(job: Job) -> str:
    """The name of the endpoint that a job calls; "" for none, and for a config of another version, which no worker could read either."""
    role = ROLE_OF.get(Step(job.step))
    try:
        return endpoint_of(job.stage.iteration.run.run_config(), role) if role else ""
    except ConfigError:
        return ""


def _budgets_of(endpoint: str, run_id: int) -> QuerySet[Budget]:
    return Budget.objects.filter(Q(run=run_id) | Q(endpoint__name=endpoint))


def _has_room(purse: Purse) -> bool:
    """Whether something is left to spend. What calls on their way hold does not count: it may come back."""
    calls, nanodollars = purse.most_calls, purse.most_nanodollars
    return (calls is None or purse.spent_calls < calls) and (nanodollars is None or purse.spent_nanodollars < nanodollars)
