"""What the pages of endpoints tell: whether they are well, how much is on its way, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, F, Q, QuerySet, Sum

from experiments.ledger import Meter, budget_meters, unwell_endpoints
from experiments.models import Batch, Budget, Endpoint, LedgerLine, PendingCall
from experiments.services.budgets import Spent, spent

MOST_GROUPS = 50
MOST_BATCHES = 20

SUMS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "nanodollars", "unanswered", "unanswered_nanodollars")


@dataclass(frozen=True, kw_only=True)
class EndpointState:
    """An endpoint as it is now.

    key_is_set: in the environment of this web server. words: why its calls wait, "" where they do not. under_way, batched: calls
    without an answer yet to this server and model with this key, whoever makes them.
    """

    endpoint: Endpoint
    key_is_set: bool
    words: str
    under_way: int
    batched: int


def states_of(endpoints: Sequence[Endpoint]) -> list[EndpointState]:
    """The endpoints as they are now, in so many queries, however many they are."""
    words = dict(unwell_endpoints({endpoint.name: endpoint.config() for endpoint in endpoints}))
    waiting = _waiting(endpoints)
    return [
        EndpointState(
            endpoint=endpoint,
            key_is_set=endpoint.key_env in os.environ,
            words=words.get(endpoint.name, ""),
            under_way=waiting.get(_server(endpoint), (0, 0))[0],
            batched=waiting.get(_server(endpoint), (0, 0))[1],
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
    """What an endpoint's page shows. by_role, by_run: sums of the ledger, the dearest first; runs: how many have called it."""

    state: EndpointState
    spent: Spent
    budget: Budget | None
    by_role: Sequence[dict[str, Any]]
    by_run: Sequence[dict[str, Any]]
    runs: int
    batches: QuerySet[Batch]

    @property
    def meters(self) -> dict[str, Meter]:
        return budget_meters(self.budget, self.spent)


def read_endpoint(endpoint: Endpoint) -> EndpointBoard:
    lines = LedgerLine.objects.filter(endpoint=endpoint.name)
    return EndpointBoard(
        state=states_of([endpoint])[0],
        spent=spent(endpoint),
        budget=Budget.objects.filter(endpoint=endpoint).first(),
        by_role=_summed(endpoint, "role"),
        by_run=_summed(endpoint, "run", "run__name"),
        runs=lines.filter(run__isnull=False).values("run").distinct().count(),
        batches=_batches(endpoint)[:MOST_BATCHES],
    )


def _summed(endpoint: Endpoint, *by: str) -> list[dict[str, Any]]:
    """Sums of the endpoint's ledger lines, grouped; the dearest groups first."""
    sums: dict[str, Any] = {f"sum_{name}": Sum(name) for name in SUMS}
    rows = LedgerLine.objects.filter(endpoint=endpoint.name).order_by().values(*by).annotate(**sums)
    return [dict(row) for row in rows.order_by(F("sum_nanodollars").desc(), F("sum_calls").desc())[:MOST_GROUPS]]


def _batches(endpoint: Endpoint) -> QuerySet[Batch]:
    """The batches that were handed over for this endpoint, the latest first."""
    return Batch.objects.filter(line__endpoint=endpoint.name).select_related("line__run")
