"""Budgets: what counts in one, and who goes on when it is raised."""

from dataclasses import replace

import pytest
from django.db.models import Q
from django.utils import timezone

from experiments.models import Budget, Endpoint, Job, Pace, PendingCall, Run
from experiments.services.budgets import has_room, set_budget, spent
from experiments.states import JobState
from tests import make
from trainer.plan import Stage, Step

DOLLAR = 1_000_000_000


@pytest.fixture
def owner(person):
    return person("member")


@pytest.fixture
def run(owner):
    return make.make_run_until(owner, 1, Step.JUDGEMENTS)


def stop_at_budget(run: Run, iteration: int = 1, step: Step = Step.JUDGEMENTS, stage: Stage = Stage.DISCRIMINATION) -> Job:
    reason = f"The budget of run {run} is spent: 10 of 10 calls are made. Raise it to go on."
    number = run.iterations.get(number=iteration)
    return make.make_job(number, stage, step, state=JobState.STOPPED, over_budget=True, reason=reason)


def states_of(run: Run) -> list[str]:
    return list(Job.objects.filter(stage__iteration__run=run, step=Step.JUDGEMENTS).order_by("id").values_list("state", flat=True))


def test_what_is_spent_is_the_sum_of_the_lines_and_of_what_is_on_its_way(run):
    make.make_completions(make.make_line(run, unanswered=2, unanswered_nanodollars=70, saved=5, saved_nanodollars=40), 3, cost=100)
    line = make.make_line(run, iteration=1, stage="discrimination", role="referee")
    pace = Pace.objects.create(base_url="offline", model="offline-teacher")
    PendingCall.objects.create(key="a" * 64, pace=pace, line=line, most_nanodollars=9, expires_at=timezone.now())
    found = spent(run)
    assert (found.calls, found.nanodollars) == (3, 300)
    assert (found.counted_calls, found.counted_nanodollars) == (5, 370)
    assert (found.reserved, found.reserved_nanodollars) == (1, 9)
    assert (found.saved, found.saved_nanodollars) == (5, 40)


def test_an_endpoint_has_spent_what_all_runs_spent_on_it(run, owner):
    other = make.make_run(owner, name="other")
    for of in (run, other):
        make.make_completions(make.make_line(of, endpoint="big"), 2, cost=10)
    make.make_completions(make.make_line(other, endpoint="small"), 4, cost=10)
    assert spent(Endpoint.objects.create(name="big", base_url="https://big.example", model="m")).calls == 4


@pytest.mark.parametrize(
    ("calls", "nanodollars", "room"), [(None, None, True), (4, None, True), (3, None, False), (None, 300, False), (9, 301, True)]
)
def test_there_is_room_until_a_cap_is_reached(run, calls, nanodollars, room):
    make.make_completions(make.make_line(run), 3, cost=100)
    assert has_room(Budget(run=run, most_calls=calls, most_nanodollars=nanodollars), spent(run)) is room
    assert has_room(None, spent(run))


def test_raising_the_budget_of_a_stopped_run_queues_its_step_again(run, owner):
    make.make_completions(make.make_line(run), 10)
    stop_at_budget(run)
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 1
    assert states_of(run) == ["stopped", "queued"]
    budget = Budget.objects.get(run=run)
    assert (budget.most_calls, budget.most_nanodollars, budget.set_by) == (20, None, owner)


def test_setting_it_twice_queues_once(run, owner):
    stop_at_budget(run)
    set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner)
    assert set_budget(run=run, most_calls=30, most_nanodollars=None, by=owner) == 0
    assert states_of(run) == ["stopped", "queued"]


@pytest.mark.parametrize(("calls", "nanodollars"), [(10, None), (9, None), (None, 10_000), (100, 9_999)])
def test_a_budget_that_is_still_spent_starts_nothing(run, owner, calls, nanodollars):
    make.make_completions(make.make_line(run), 10, cost=1000)
    stop_at_budget(run)
    assert set_budget(run=run, most_calls=calls, most_nanodollars=nanodollars, by=owner) == 0
    assert states_of(run) == ["stopped"]


def test_no_budget_at_all_lets_it_go_on(run, owner):
    make.make_completions(make.make_line(run), 10)
    set_budget(run=run, most_calls=10, most_nanodollars=None, by=owner)
    stop_at_budget(run)
    assert set_budget(run=run, most_calls=None, most_nanodollars=None, by=owner) == 1
    assert not Budget.objects.exists()


def test_a_run_that_somebody_stopped_stays_stopped(run, owner):
    stop_at_budget(run)
    Run.objects.filter(pk=run.pk).update(stop_requested_at=timezone.now())
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert states_of(run) == ["stopped"]


def test_a_step_that_failed_is_not_started_by_a_budget(run, owner):
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state=JobState.FAILED)
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert states_of(run) == ["failed"]


def test_the_budget_of_one_run_starts_no_other(run, owner):
    other = make.make_run_until(owner, 1, Step.JUDGEMENTS, name="other")
    stop_at_budget(other)
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert states_of(other) == ["stopped"]


# Endpoints


@pytest.fixture
def big(run):
    """An endpoint that the run's referee, and nobody else, calls."""
    endpoint = Endpoint.objects.create(name="big", base_url="https://big.example", model="m")
    config = run.run_config()
    config = replace(config, endpoints={**config.endpoints, "big": endpoint.config()}, referee=replace(config.referee, endpoint="big"))
    Run.objects.filter(pk=run.pk).update(config=config.as_dict())
    run.refresh_from_db()
    return endpoint


def test_raising_an_endpoints_budget_starts_the_runs_that_call_it(run, big, owner):
    make.make_completions(make.make_line(run, iteration=1, stage="discrimination", role="referee"), 10)
    set_budget(endpoint=big, most_calls=10, most_nanodollars=None, by=owner)
    stop_at_budget(run)
    other = make.make_run_until(owner, 1, Step.JUDGEMENTS, name="other")
    stop_at_budget(other)
    assert set_budget(endpoint=big, most_calls=20, most_nanodollars=None, by=owner) == 1
    assert states_of(run) == ["stopped", "queued"]
    assert states_of(other) == ["stopped"]


def test_a_run_waits_for_both_of_its_budgets(run, big, owner):
    make.make_completions(make.make_line(run, iteration=1, stage="discrimination", role="referee"), 10)
    set_budget(endpoint=big, most_calls=10, most_nanodollars=None, by=owner)
    set_budget(run=run, most_calls=10, most_nanodollars=None, by=owner)
    stop_at_budget(run)
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert set_budget(endpoint=big, most_calls=20, most_nanodollars=DOLLAR, by=owner) == 1
    assert states_of(run) == ["stopped", "queued"]


def test_a_step_that_calls_another_endpoint_is_left_alone(run, big, owner):
    stop_at_budget(run, 0, Step.TEACHER_RESPONSES, Stage.IMITATION)
    assert set_budget(endpoint=big, most_calls=20, most_nanodollars=None, by=owner) == 0


def test_a_budget_is_of_a_run_or_of_an_endpoint(run, big, owner):
    set_budget(run=run, most_calls=1, most_nanodollars=None, by=owner)
    set_budget(endpoint=big, most_calls=2, most_nanodollars=None, by=owner)
    set_budget(run=run, most_calls=3, most_nanodollars=None, by=owner)
    assert list(Budget.objects.order_by("most_calls").values_list("most_calls", flat=True)) == [2, 3]
    assert Budget.objects.filter(Q(run=run), endpoint=None).get().most_calls == 3
