"""Trying an endpoint from a page: one tiny call, counted in the ledger and in the endpoint's budget as any other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from django.conf import settings
from django.db import transaction
from django.db.models import F

from experiments.models import Budget, Endpoint, LedgerLine
from experiments.services.budgets import has_room, spent
from trainer.addresses import AddressGuard
from trainer.calls import Done, Outcome
from trainer.endpoint_test import ROLE, Tried, try_endpoint


def try_out(endpoint: Endpoint) -> Tried:
    """Try an endpoint from this process, with its environment, and keep what that cost. Takes half a minute at most."""
    if not has_room(Budget.objects.filter(endpoint=endpoint).first(), spent(endpoint)):
        return Tried(ok=False, words=f"The budget of endpoint {endpoint.name} is spent, so nothing was called. An admin can raise it.")
    guard = AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS)
    tried = asyncio.run(try_endpoint(endpoint.config(), name=endpoint.name, guard=guard, environ=os.environ))
    _record(endpoint, tried.done)
    return tried


@transaction.atomic
def _record(endpoint: Endpoint, done: Sequence[Done]) -> None:
    """Add the ends of calls to the ledger line of the endpoint's tests."""
    if not done:
        return
    line, _ = LedgerLine.objects.get_or_create(run=None, iteration=None, stage="", role=ROLE, endpoint=endpoint.name)
    columns = [_columns(end) for end in done]
    sums = {name: sum(of.get(name, 0) for of in columns) for name in sorted({name for of in columns for name in of})}
    if sums:
        LedgerLine.objects.filter(pk=line.pk).update(**{name: F(name) + added for name, added in sums.items()})


def _columns(done: Done) -> dict[str, int]:
    """What one end adds to which columns of its ledger line."""
    if done.completion is not None:
        names = ("prompt_tokens", "cached_tokens", "completion_tokens", "nanodollars")
        return {"calls": 1, **{name: getattr(done.completion, name) for name in names}}
    match done.outcome:
        case Outcome.UNANSWERED:
            return {"unanswered": 1, "unanswered_nanodollars": done.call.most_nanodollars}
        case Outcome.LIMITED | Outcome.FAILED:
            return {done.outcome.value: 1}
        case _:
            return {}
