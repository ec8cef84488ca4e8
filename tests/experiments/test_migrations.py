"""Migrations that carry rows over: forward, back, and forward again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps.registry import Apps
from django.contrib.auth.models import User
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE_CALLS, CALLS, LATEST = "0002_endpoint_base_url", "0003_calls", "0016_metrics_of_an_iteration"

Migrate = Callable[[str], Apps]


@pytest.fixture
def migrate(transactional_db: None) -> Iterator[Migrate]:
    """Brings the tables of experiments to a migration, and gives the models of that time; the latest come back at the end."""

    def to(name: str) -> Apps:
        executor = MigrationExecutor(connection)
        executor.migrate([("experiments", name)])
        return MigrationExecutor(connection).loader.project_state([("experiments", name)]).apps

    yield to
    to(LATEST)


def test_these_are_all_migrations_there_are() -> None:
    assert MigrationExecutor(connection).loader.graph.leaf_nodes("experiments") == [("experiments", LATEST)]


def make_paid_runs(apps: Apps, owner: User) -> list[int]:
    """Two runs of before stages were written down, with 3 and 2 completions, and one completion whose run is gone."""
    models: Any = apps
    experiment = models.get_model("experiments", "Experiment").objects.create(name="old", owner_id=owner.pk)
    runs = [
        models.get_model("experiments", "Run").objects.create(
            experiment=experiment, name=name, owner_id=owner.pk, config={}, seed=1, steps=1
        )
        for name in ("first", "second")
    ]
    paid_by = [runs[0], runs[0], runs[0], runs[1], runs[1], None]
    for number, run in enumerate(paid_by):
        models.get_model("experiments", "Completion").objects.create(
            key=f"{number:064x}", endpoint="big", model="m", request={}, finish_reason="stop", prompt_tokens=10 + number,
            completion_tokens=2, latency_s=1.0, run=run,
        )  # fmt: skip
    return [run.pk for run in runs]


def booked(apps: Any) -> list[tuple[int, int, int, int]]:
    """(run, calls, input tokens, completions that say so) of each ledger line."""
    lines = apps.get_model("experiments", "LedgerLine").objects.order_by("run_id")
    return [(line.run_id, line.calls, line.prompt_tokens, line.completions.count()) for line in lines]


def test_what_a_run_paid_is_booked_to_it_and_stays_its_own_there_and_back(migrate: Migrate, person: Callable[[Any], User]) -> None:
    owner = person("member")
    first, second = make_paid_runs(migrate(BEFORE_CALLS), owner)
    lines = [(first, 3, 33, 3), (second, 2, 27, 2)]
    assert booked(migrate(CALLS)) == lines
    back: Any = migrate(BEFORE_CALLS)
    completions = back.get_model("experiments", "Completion").objects.order_by("key")
    assert list(completions.values_list("run", flat=True)) == [first, first, first, second, second, None]
    assert booked(migrate(LATEST)) == lines


def test_two_lines_of_an_endpoints_tests_become_one_with_all_they_count(migrate: Migrate) -> None:
    before: Any = migrate(CALLS)
    line = before.get_model("experiments", "LedgerLine").objects
    for endpoint, calls in (("big", 1), ("big", 2), ("small", 4)):
        line.create(role="test", endpoint=endpoint, calls=calls, nanodollars=10 * calls, unanswered=calls, limited=calls, failed=calls)
    line.create(role="teacher", endpoint="big", calls=7)
    line.create(role="teacher", endpoint="big", calls=7)  # of two runs that are deleted
    after: Any = migrate(LATEST)
    lines = after.get_model("experiments", "LedgerLine").objects.order_by("role", "endpoint", "pk")
    columns = ("role", "endpoint", "calls", "nanodollars", "unanswered", "limited", "failed")
    assert list(lines.values_list(*columns)) == [
        ("teacher", "big", 7, 0, 0, 0, 0),
        ("teacher", "big", 7, 0, 0, 0, 0),
        ("test", "big", 3, 30, 3, 3, 3),
        ("test", "small", 4, 40, 4, 4, 4),
    ]


def test_a_budget_set_before_keeps_its_time_and_a_new_one_gets_the_databases(migrate: Migrate) -> None:
    before: Any = migrate(CALLS)
    endpoint = before.get_model("experiments", "Endpoint").objects.create(name="big", base_url="https://a.example/v1", model="m")
    earlier = before.get_model("experiments", "Budget").objects.create(endpoint=endpoint, most_calls=3).set_at
    after: Any = migrate(LATEST)
    budgets = after.get_model("experiments", "Budget").objects
    other = after.get_model("experiments", "Endpoint").objects.create(name="small", base_url="https://a.example/v1", model="m")
    later = budgets.create(endpoint=other, most_calls=4)
    later.refresh_from_db()
    assert budgets.get(most_calls=3).set_at == earlier < later.set_at
