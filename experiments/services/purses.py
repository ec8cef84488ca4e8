"""Budgets as they stand: the caps, what is spent, and what calls on their way hold of them."""

from __future__ import annotations

from typing import Any

from django.db.models import BigIntegerField, Count, F, OuterRef, Q, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce

from experiments.models import Budget, LedgerLine, PendingCall
from trainer.budget import Purse


def purses_of(endpoint: str, *, run_id: int | None) -> list[Purse]:
    """The budgets that a call to an endpoint counts in, the endpoint's own and its run's, locked in one order for the transaction.

    While they are locked nobody else permits a call on them. A call that ends meanwhile moves from held to spent in one commit, and
    both are read by one statement: it is counted once, and never not at all.
    """
    locked = list(_budgets(endpoint, run_id).order_by("pk").select_for_update(of=("self",), no_key=True).values_list("pk", flat=True))
    return purses(Budget.objects.filter(pk__in=locked).order_by("pk")) if locked else []


def purses(budgets: QuerySet[Budget]) -> list[Purse]:
    """What is left of some budgets, as one statement finds them."""
    of_run, of_endpoint = Q(run=OuterRef("run_id")), Q(endpoint=OuterRef("endpoint__name"))
    lines = LedgerLine.objects.filter(of_run | of_endpoint)
    held = PendingCall.objects.filter(Q(line__run=OuterRef("run_id")) | Q(line__endpoint=OuterRef("endpoint__name")))
    rows: Any = budgets.select_related("run", "endpoint").annotate(
        spent_calls=_sum(lines, Sum(F("calls") + F("unanswered"))),
        spent_nanodollars=_sum(lines, Sum(F("nanodollars") + F("unanswered_nanodollars"))),
        held_calls=_sum(held, Count("pk")),
        held_nanodollars=_sum(held, Sum("most_nanodollars")),
    )
    return [
        Purse(
            owner=f"run {row.run}" if row.run else f"endpoint {row.endpoint}",
            most_calls=row.most_calls,
            most_nanodollars=row.most_nanodollars,
            spent_calls=row.spent_calls,
            spent_nanodollars=row.spent_nanodollars,
            held_calls=row.held_calls,
            held_nanodollars=row.held_nanodollars,
        )
        for row in rows
    ]


def _budgets(endpoint: str, run_id: int | None) -> QuerySet[Budget]:
    of_run = Q(run=run_id) if run_id is not None else Q(pk__in=[])
    capped = Q(most_calls__isnull=False) | Q(most_nanodollars__isnull=False)  # a budget that was lifted has none
    return Budget.objects.filter(of_run | Q(endpoint__name=endpoint), capped)


def _sum(rows: QuerySet[Any], total: Sum | Count) -> Coalesce:
    """A total over rows that belong to one budget, as a subquery; 0 where there are none."""
    one_group = rows.order_by().annotate(group=Value(1)).values("group")
    return Coalesce(Subquery(one_group.annotate(total=total).values("total"), output_field=BigIntegerField()), 0)
