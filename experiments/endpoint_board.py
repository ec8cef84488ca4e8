"""What the pages of endpoints tell: whether they are well, how much is on its way, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, F, Q, QuerySet, Sum

from experiments.ledger import Meter, budget_meters, unwell_endpoints
from experiments.models import Batch, Budget, Endpoint, PendingCall
from experiments.querysets_calls import lines_on, runs_using
from experiments.services.budgets import Spent, spent
from experiments.templatetags.lionweb import duration
from trainer.calls import Window
from trainer.endpoint_test import ROLE as TEST
from trainer.pacing import LONGER_THAN_A_MINUTE_S

MOST_GROUPS = 50
MOST_BATCHES = 20

SUMS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "nanodollars", "unanswered", "unanswered_nanodollars")


@dataclass(frozen=True, kw_only=True)
class EndpointState:
    """An endpoint as it is now.

    key_is_set: in the environment of this web server. words: why its calls wait, "" where they do not. under_way, batched: calls
    without an answer yet to this server and model with this key, whoever makes them. runs: how many have a job that is queued or running,
    and this endpoint in their config.
    """

    endpoint: Endpoint
    key_is_set: bool
    words: str
    under_way: int
    batched: int
    runs: int


def limit_words(window: Window) -> str:
    """What a server told of a limit: so many a minute, and how many it would take at once when it said so."""
    most = f"{window.limit:,.0f}"
    if (window.reset_s or 0.0) >= LONGER_THAN_A_MINUTE_S:
        left = "" if window.remaining is None else f", {window.remaining:,.0f} of them left"
        return f"{most} in a longer time than a minute{left}; whole again in {duration(window.reset_s)}"
    return f"{most} a minute" + ("" if window.remaining is None else f", {window.remaining:,.0f} more right away")


def states_of(endpoints: Sequence[Endpoint]) -> list[EndpointState]:
    """The endpoints as they are now, in so many queries, however many they are."""
    words = dict(unwell_endpoints({endpoint.name: endpoint.config() for endpoint in endpoints}))
    waiting = _waiting(endpoints)
    using = runs_using([endpoint.name for endpoint in endpoints])
    return [
        EndpointState(
            endpoint=endpoint,
            key_is_set=endpoint.key_env in os.environ,
            words=words.get(endpoint.name, ""),
            under_way=waiting.get(_server(endpoint), (0, 0))[0],
            batched=waiting.get(_server(endpoint), (0, 0))[1],
            runs=using.get(endpoint.name, 0),
        )
        for endpoint in endpoints
    ]


def _server(endpoint: Endpoint) -> tuple[str, str, str]:
    return endpoint.base_url, endpoint.model, endpoint.key_env


def _waiting(endpoints: Sequence[Endpoint]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """base URL, model and variable -> calls under way, calls in batches."""
    ours = PendingCall.objects.filter(pace__base_url__in={endpoint.base_url for endpoint in endpoints})
    rows = ours.order_by().values_list("pace__base_url", "pace__model", "pace__key_env")
    counted = rows.annotate(n=Count("pk", filter=Q(batch=None)), batched=Count("batch"))
    return {(base_url, model, key_env): (n, batched) for base_url, model, key_env, n, batched in counted}


@dataclass(frozen=True, kw_only=True)
class EndpointBoard:
    """What an endpoint's page shows.

    by_role, by_run: sums of the ledger, the dearest first; runs: how many have called it; together: the sums of all.
    """

    state: EndpointState
    spent: Spent
    budget: Budget | None
    by_role: Sequence[dict[str, Any]]
    by_run: Sequence[dict[str, Any]]
    runs: int
    together: dict[str, Any]
    batches: QuerySet[Batch]

    @property
    def meters(self) -> dict[str, Meter]:
        return budget_meters(self.budget, self.spent)

    @property
    def payers(self) -> str:
        """Who made the calls, in words."""
        by = [f"by {self.runs:,} run{'s' if self.runs != 1 else ''}"] if self.runs else []
        by += ["by tests"] if any(row["role"] == TEST for row in self.by_role) else []
        return " and ".join(by).capitalize() or "By runs that are deleted"


def read_endpoint(endpoint: Endpoint) -> EndpointBoard:
    lines = lines_on(endpoint.name)
    return EndpointBoard(
        state=states_of([endpoint])[0],
        spent=spent(endpoint),
        budget=Budget.objects.filter(endpoint=endpoint).first(),
        by_role=_summed(endpoint, "role"),
        by_run=_summed(endpoint, "run", "run__name"),
        runs=lines.filter(run__isnull=False).values("run").distinct().count(),
        together=lines.aggregate(**{f"sum_{name}": Sum(name, default=0) for name in SUMS}),
        batches=_batches(endpoint)[:MOST_BATCHES],
    )


def _summed(endpoint: Endpoint, *by: str) -> list[dict[str, Any]]:
    """Sums of the endpoint's ledger lines, grouped; the dearest groups first."""
    sums: dict[str, Any] = {f"sum_{name}": Sum(name) for name in SUMS}
    rows = lines_on(endpoint.name).order_by().values(*by).annotate(**sums)
    counted = F("sum_nanodollars") + F("sum_unanswered_nanodollars")
    return [dict(row) for row in rows.order_by(counted.desc(), F("sum_calls").desc())[:MOST_GROUPS]]


def _batches(endpoint: Endpoint) -> QuerySet[Batch]:
    """The batches that were handed over for this endpoint, the latest first."""
    return Batch.objects.filter(line__endpoint=endpoint.name).select_related("line__run")
