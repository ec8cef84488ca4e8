"""Tests of an endpoint: held in its budget before anything is sent, one at a time, counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import Min
from django.utils import timezone

from experiments.models import Budget, Endpoint, LedgerLine, Pace, PendingCall
from experiments.services import jobs
from experiments.services.endpoint_tests import try_out
from tests.http_server import Answer, Asked, Server, running, said
from trainer.endpoint_test import Tried

pytestmark = pytest.mark.django_db(transaction=True)  # what is held has to be seen from another connection

T = TypeVar("T")

NANODOLLARS_HELD = 520 * 1000 + 256 * 2000


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as it:
        yield it


@pytest.fixture
def local(server: Server) -> Endpoint:
    return Endpoint.objects.create(name="local", base_url=server.url, model="m", price_input=1, price_output=2)


def during(server: Server, do: Callable[[], T]) -> list[T]:
    """Let something be done while the server has been asked and has not answered; what it gave is added to the list."""
    given: list[T] = []

    def answer(asked: Asked) -> Answer:
        try:
            given.append(do())
        finally:
            connection.close()
        return said("yes")

    server.answer = answer
    return given


def make_held(local: Endpoint, calls: int, *, lease_s: float = 60) -> None:
    """Calls of the teacher to the endpoint that are on their way."""
    pace = Pace.objects.create(base_url=local.base_url, model=local.model, key_env=local.key_env)
    line = LedgerLine.objects.create(role="teacher", endpoint=local.name)
    for number in range(calls):
        expires = timezone.now() + timedelta(seconds=lease_s)
        PendingCall.objects.create(key=f"{number:064x}", pace=pace, line=line, most_nanodollars=7, expires_at=expires)


def test_the_call_is_held_in_the_budget_while_it_is_made_and_then_counted(server: Server, local: Endpoint) -> None:
    held = during(server, lambda: list(PendingCall.objects.values_list("line__role", "most_nanodollars")))
    assert try_out(local).ok
    assert held == [[("test", NANODOLLARS_HELD)]]
    assert not PendingCall.objects.exists()
    assert LedgerLine.objects.get().calls == 1


def test_calls_on_their_way_hold_a_test_back(server: Server, local: Endpoint) -> None:
    make_held(local, 3)
    Budget.objects.create(endpoint=local, most_calls=3)
    tried = try_out(local)
    assert (tried.ok, server.asked) == (False, [])
    assert tried.words == (
        "Nothing was called. What is left of the budget of endpoint local is held by calls on their way. Try again when they are done."
    )
    assert PendingCall.objects.count() == 3


def test_a_test_of_two_calls_is_not_begun_with_room_for_one(server: Server, local: Endpoint) -> None:
    Endpoint.objects.update(structured="json_object")
    local.refresh_from_db()
    Budget.objects.create(endpoint=local, most_calls=1)
    assert "A test of it makes 2 calls, and the budget of endpoint local has room for fewer. Raise it." in try_out(local).words
    assert server.asked == []
    assert not PendingCall.objects.exists()
    Budget.objects.update(most_calls=2)
    assert try_out(local).ok
    assert LedgerLine.objects.get().calls == 2


@pytest.mark.parametrize(("spare", "asked"), [(-1, 0), (0, 1)])
def test_a_budget_in_dollars_has_to_have_room_for_the_most_it_can_cost(server: Server, local: Endpoint, spare: int, asked: int) -> None:
    Budget.objects.create(endpoint=local, most_nanodollars=NANODOLLARS_HELD + spare)
    assert try_out(local).ok is bool(asked)
    assert len(server.asked) == asked


def test_what_is_held_is_never_less_than_what_may_be_counted(server: Server, local: Endpoint) -> None:
    Endpoint.objects.update(structured="json_schema", timeout_s=1, extra='{"metadata": "' + "long " * 1000 + '"}')
    local.refresh_from_db()

    def look_and_fall_silent() -> int:
        server.go.clear()  # the second call, the one for JSON, gets no answer in time
        return int(PendingCall.objects.aggregate(least=Min("most_nanodollars"))["least"])

    held = during(server, look_and_fall_silent)
    tried = try_out(local)
    server.go.set()
    assert 0 < LedgerLine.objects.get().unanswered_nanodollars == tried.unanswered_nanodollars <= held[0]


def test_one_test_of_an_endpoint_at_a_time(server: Server, local: Endpoint) -> None:
    second = during(server, lambda: try_out(local))
    assert try_out(local).ok
    assert [tried.words for tried in second] == ["Nothing was called. Endpoint local is being tested just now. Try again in half a minute."]
    assert len(server.asked) == 1


def test_two_endpoints_at_one_server_are_tested_beside_one_another(server: Server, local: Endpoint) -> None:
    twin = Endpoint.objects.create(name="twin", base_url=local.base_url, model=local.model)
    beside = during(server, lambda: _try_beside(server, twin))
    assert try_out(local).ok
    assert [tried.ok for tried in beside] == [True]
    assert sorted(LedgerLine.objects.values_list("endpoint", "calls")) == [("local", 1), ("twin", 1)]


def test_tests_leave_half_of_the_web_servers_threads_to_pages(server: Server, local: Endpoint, settings: Any) -> None:
    settings.LIONWEB_WEB_THREADS = 4
    pace = Pace.objects.create(base_url=local.base_url, model="m")
    for name in ("slow", "slower"):
        line = LedgerLine.objects.create(role="test", endpoint=name)
        PendingCall.objects.create(key=f"{line.pk:064x}", pace=pace, line=line, expires_at=timezone.now() + timedelta(seconds=9))
    assert try_out(local).words == "Nothing was called. 2 other endpoints are being tested just now. Try again in half a minute."
    PendingCall.objects.filter(line=line).delete()
    assert try_out(local).ok


def _try_beside(server: Server, other: Endpoint) -> Tried:
    server.answer = lambda asked: said("yes")
    return try_out(other)


def test_a_test_whose_web_server_died_counts_as_unanswered_and_is_free_for_another(server: Server, local: Endpoint) -> None:
    make_held(local, 1, lease_s=-1)
    LedgerLine.objects.update(role="test")
    assert jobs.sweep()["given_up"] == 1
    line = LedgerLine.objects.get()
    assert (line.unanswered, line.unanswered_nanodollars) == (1, 7)
    assert jobs.sweep()["given_up"] == 0
    assert try_out(local).ok


def test_one_that_was_given_up_meanwhile_is_not_counted_again(server: Server, local: Endpoint) -> None:
    def give_up() -> int:
        PendingCall.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        return jobs.sweep()["given_up"]

    given_up = during(server, give_up)
    try_out(local)
    assert given_up == [1]
    line = LedgerLine.objects.get()
    assert (line.calls, line.unanswered) == (0, 1)


def test_the_tests_of_an_endpoint_have_one_line(local: Endpoint) -> None:
    LedgerLine.objects.create(role="test", endpoint="local")
    with pytest.raises(IntegrityError), transaction.atomic():
        LedgerLine.objects.create(role="test", endpoint="local")
    LedgerLine.objects.create(role="test", endpoint="another")
    assert LedgerLine.objects.count() == 2
