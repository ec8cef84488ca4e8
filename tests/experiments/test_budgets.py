"""Budgets: what counts in one, and who goes on when it is raised."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from experiments.models import Budget, Endpoint, Job, Pace, PendingCall, Run
from experiments.services import jobs
from experiments.services.budget_changes import set_budget
from experiments.services.budgets import budgets_in_the_way, is_spent, spent
from experiments.states import JobState
from tests import make
from tests.stack import wait_until
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
def test_a_budget_is_spent_when_a_cap_is_reached(run, calls, nanodollars, room):
    make.make_completions(make.make_line(run), 3, cost=100)
    assert is_spent(Budget.objects.create(run=run, most_calls=calls, most_nanodollars=nanodollars)) is not room


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
    assert states_of(run) == ["stopped", "queued"]


def test_a_run_that_somebody_stopped_stays_stopped(run, owner):
    stop_at_budget(run)
    Run.objects.filter(pk=run.pk).update(stop_requested_at=timezone.now())
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert states_of(run) == ["stopped"]


def test_a_step_that_failed_is_not_started_by_a_budget(run, owner):
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state=JobState.FAILED)
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert states_of(run) == ["failed"]


def test_a_failed_evaluation_is_not_started_by_a_budget(run, owner):
    make.make_job(run.iterations.get(number=0), Stage.EVALUATION, Step.BENCHMARKS, state=JobState.FAILED)
    Job.objects.filter(step=Step.BENCHMARKS, state=JobState.FINISHED).delete()
    make.make_completions(make.make_line(run), 10)
    stop_at_budget(run)
    set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner)
    assert states_of(run) == ["stopped", "queued"]
    assert [job.state for job in Job.objects.filter(step=Step.BENCHMARKS)] == ["failed"]


def test_the_budget_of_one_run_starts_no_other(run, owner):
    other = make.make_run_until(owner, 1, Step.JUDGEMENTS, name="other")
    stop_at_budget(other)
    assert set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner) == 0
    assert states_of(other) == ["stopped"]


# A budget that is changed while a job is on its way to stop at it


@pytest.fixture
def refused(run, owner):
    """A running job that was just told that the run's ten calls are made."""
    make.make_completions(make.make_line(run), 10)
    set_budget(run=run, most_calls=10, most_nanodollars=None, by=owner)
    return make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, started_at=timezone.now())


def stop(job: Job) -> None:
    assert jobs.end(job, JobState.STOPPED, reason="The budget is spent.", over_budget=True)


@pytest.mark.parametrize("cap", [20, None])
def test_one_raised_or_lifted_between_a_refusal_and_the_jobs_end_lets_it_go_on(run, owner, refused, cap):
    assert set_budget(run=run, most_calls=cap, most_nanodollars=None, by=owner) == 0
    stop(refused)
    assert states_of(run) == ["stopped", "queued"]


def test_one_that_is_as_it_was_stops_it(run, refused):
    stop(refused)
    assert jobs.sweep()["gone_on"] == 0
    assert states_of(run) == ["stopped"]


def test_one_with_room_that_is_too_little_for_the_next_call_does_not_start_job_after_job(run, owner, refused):
    set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner)
    stop(refused)
    again = Job.objects.get(state=JobState.QUEUED, stage__iteration__run=run)
    stop(jobs.claim(again.pk, worker="two"))
    assert jobs.sweep()["gone_on"] == 0
    assert states_of(run) == ["stopped", "stopped"]


def test_the_sweep_finds_what_a_raised_budget_left_behind_and_queues_it_once(run, owner, refused):
    stop(refused)
    Budget.objects.update(most_calls=20, set_at=timezone.now())  # and whoever did so died before anything was queued
    assert jobs.sweep()["gone_on"] == 1
    assert jobs.sweep()["gone_on"] == 0
    assert states_of(run) == ["stopped", "queued"]


@pytest.mark.django_db(transaction=True)
def test_raising_one_while_a_job_is_ending_at_it_waits_for_the_job_and_lets_it_go_on(run, owner, refused):
    def raise_elsewhere() -> int:
        try:
            return set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner)
        finally:
            connection.close()

    def is_waiting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return cursor.fetchone()[0] == 1

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            stop(refused)
            raised = pool.submit(raise_elsewhere)
            wait_until(is_waiting, timeout_s=10, what="the budget to wait for the job's end")
        assert raised.result() == 1
    assert states_of(run) == ["stopped", "queued"]


@pytest.mark.django_db(transaction=True)
def test_no_budget_is_locked_while_runs_are_asked_to_go_on(run, owner, monkeypatch):
    """A job that ends locks its run and then its budgets: who held a budget and asked for the run would wait for it for ever."""
    inside = []
    monkeypatch.setattr(jobs, "go_on_from_budgets", lambda: inside.append(connection.in_atomic_block) or 0)
    set_budget(run=run, most_calls=20, most_nanodollars=None, by=owner)
    assert inside == [False]


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


# Which budget it was


@pytest.mark.parametrize(
    ("of_run", "of_endpoint", "in_the_way"),
    [
        ({"most_calls": 10}, {"most_calls": 99}, ["run"]),
        ({"most_nanodollars": DOLLAR}, {"most_calls": 9}, ["endpoint"]),
        ({"most_calls": 10}, {"most_nanodollars": 10_000}, ["run", "endpoint"]),
        ({"most_calls": 99, "most_nanodollars": DOLLAR}, {"most_nanodollars": 10_001}, ["endpoint"]),
        ({"most_nanodollars": 10_001}, {"most_nanodollars": DOLLAR}, ["run"]),
        ({"most_calls": 11}, {"most_calls": 11}, []),
    ],
)
def test_a_job_stopped_at_what_is_spent_or_else_at_the_least_money_left(run, big, of_run, of_endpoint, in_the_way):
    make.make_completions(make.make_line(run, iteration=1, stage="discrimination", role="referee"), 10, cost=1000)
    Budget.objects.create(run=run, **of_run)
    Budget.objects.create(endpoint=big, **of_endpoint)
    assert ["run" if budget.run else "endpoint" for budget in budgets_in_the_way(stop_at_budget(run))] == in_the_way
