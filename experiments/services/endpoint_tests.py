"""Trying an endpoint from a page: one tiny call or two, held in the endpoint's budget before and counted in the ledger after, as any other.

What a test holds also keeps a second one of the same endpoint away until it is done, or its lease is over.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from experiments.models import Endpoint, LedgerLine, Pace, PendingCall
from experiments.services import call_rows
from experiments.services.calls import Counts, add_to_ledger, count_end
from experiments.services.purses import purses_of
from trainer.addresses import AddressGuard
from trainer.budget import Purse, take_from_all
from trainer.calls import Call, Done
from trainer.config import RoleConfig
from trainer.endpoint_test import ROLE, Tried, try_endpoint
from trainer.wire import call_of, request_of

LEASE = timedelta(seconds=60)
"""A test takes half of this at most; one whose web server died is given up after it."""

LONGEST_QUESTION = 512
LONGEST_ANSWER = 256
"""A test asks less, in bytes and with the schema of the JSON it may ask for; and it asks for no longer an answer, in tokens."""


def try_out(endpoint: Endpoint) -> Tried:
    """Try an endpoint from this process, with its environment, and keep what that cost. Takes half a minute at most."""
    calls = _calls(endpoint)
    if why_not := _hold(endpoint, calls):
        return Tried(ok=False, words=f"Nothing was called. {why_not}")
    guard = AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS)
    tried = asyncio.run(try_endpoint(endpoint.config(), name=endpoint.name, guard=guard, environ=os.environ))
    _record(calls, tried.done)
    return tried


def _calls(endpoint: Endpoint) -> list[Call]:
    """The calls that a test may pay for, each at the most it can cost, under keys of their own: a test is never answered from the store."""
    config, role = endpoint.config(), RoleConfig(endpoint=endpoint.name, max_tokens=LONGEST_ANSWER)
    request = request_of(endpoint.name, config, role, [{"role": "user", "content": "?" * LONGEST_QUESTION}])
    return [call_of(secrets.token_hex(32), ROLE, request, config) for _ in range(1 if config.structured == "text" else 2)]


@transaction.atomic
def _hold(endpoint: Endpoint, calls: Sequence[Call]) -> str:
    """Hold the calls in the endpoint's budget. Gives why they may not be made, and then holds none; "" where they may."""
    made, _ = Pace.objects.get_or_create(base_url=endpoint.base_url, model=endpoint.model, key_env=endpoint.key_env)
    pace = Pace.objects.select_for_update(no_key=True).get(pk=made.pk)
    line = _line(endpoint)
    if why_not := _busy(line) or _refusal(purses_of(endpoint.name, run_id=None), calls):
        return why_not
    until = Now() + LEASE
    PendingCall.objects.bulk_create(
        PendingCall(key=call.key, pace=pace, line=line, most_nanodollars=call.most_nanodollars, expires_at=until) for call in calls
    )
    return ""


def _busy(line: LedgerLine) -> str:
    """Which tests have to end before one of this line's endpoint may begin; "" where none has to."""
    held = PendingCall.objects.filter(line__role=ROLE, line__run=None, expires_at__gt=Now())
    tested = set(held.values_list("line__endpoint", flat=True))
    if line.endpoint in tested:
        return f"Endpoint {line.endpoint} is being tested just now. Try again in half a minute."
    if len(tested) >= max(1, settings.LIONWEB_WEB_THREADS // 2):  # each holds a thread that pages are waiting for
        return f"{len(tested)} other endpoints are being tested just now. Try again in half a minute."
    return ""


def _refusal(purses: Sequence[Purse], calls: Sequence[Call]) -> str:
    """Why a budget has no room for all of the calls; "" where every one has."""
    if spent := next((words for purse in purses if (words := purse.refusal(calls[0]))), ""):
        return spent
    held_by_others = any(purse.held_calls for purse in purses)
    if all(take_from_all(purses, call) for call in calls):
        return ""
    owner = purses[0].owner
    if held_by_others:
        return f"What is left of the budget of {owner} is held by calls on their way. Try again when they are done."
    return f"A test of it makes {len(calls)} calls, and the budget of {owner} has room for fewer. Raise it."


@transaction.atomic
def _record(calls: Sequence[Call], done: Sequence[Done]) -> None:
    """End the calls, and add what came of them to the ledger line of the endpoint's tests. Calls that were given up are counted already."""
    held = call_rows.end([call.key for call in calls])
    counts: Counts = defaultdict(lambda: defaultdict(int))
    for line in set(held.values()):
        for end in done:
            count_end(counts[line], end, was_pending=True, was_kept=end.completion is not None)
    add_to_ledger(counts)


def _line(endpoint: Endpoint) -> LedgerLine:
    line, _ = LedgerLine.objects.get_or_create(run=None, iteration=None, stage="", role=ROLE, endpoint=endpoint.name)
    return line
