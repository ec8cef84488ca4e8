"""Setting a budget: what had stopped at it, and has room now, goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models.functions import Now

from experiments.models import Budget, Endpoint, Run
from experiments.services import jobs

if TYPE_CHECKING:
    from django.contrib.auth.models import User


def set_budget(
    *, run: Run | None = None, endpoint: Endpoint | None = None, most_calls: int | None, most_nanodollars: int | None, by: User
) -> int:
    """Set the budget of a run or of an endpoint; None is no cap. Gives how many runs go on.

    The budget is set before any run is locked: a job that ends at the same time locks its run first and then asks its budgets.
    """
    caps = {"most_calls": most_calls, "most_nanodollars": most_nanodollars}
    with transaction.atomic():
        Budget.objects.update_or_create(run=run, endpoint=endpoint, defaults={**caps, "set_by": by, "set_at": Now()})
    return jobs.go_on_from_budgets()
