"""Where calls are permitted and counted: one caller a call, one line a call, never more than the budget."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DataError, OperationalError, connection
from django.db.models import Sum

from experiments import models
from experiments.models import Budget, Completion, Job, LedgerLine, Pace, PendingCall, Run
from experiments.services import call_rows, jobs
from experiments.services.calls import PostgresCalls
from experiments.services.endpoints import live_endpoints
from experiments.states import JobState
from tests import make
from trainer import records
from trainer.calls import Call, Done, Outcome, Turn
from trainer.completions import Endpoint
from trainer.config import EndpointConfig, RoleConfig, RunConfig
from trainer.demo.chat import MODEL
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher
from trainer.errors import BudgetSpent
from trainer.plan import Stage, Step
from trainer.wire import call_of, completion_key, request_of

pytestmark = pytest.mark.django_db(transaction=True)  # turns close and open connections as workers do

CONFIG = EndpointConfig(
    base_url="http://127.0.0.1:1/v1", model="fake", key_env="", price_input=1.0, price_output=2.0, max_at_once=64, rpm=600_000
)
ROLE = RoleConfig(endpoint="fake", max_tokens=100)


def call(number: int) -> Call:
    request = request_of("fake", CONFIG, ROLE, [{"role": "user", "content": "Say hello."}], sample=number)
    return call_of(completion_key(request), "teacher", request, CONFIG)


def answered(of: Call) -> Done:
    completion = records.Completion(
        key=of.key,
        endpoint="fake",
        model="fake",
        role=of.role,
        request=dict(of.request),
        text="hello",
        finish_reason="stop",
        prompt_tokens=5,
        completion_tokens=2,
        nanodollars=9_000,
        latency_s=0.1,
    )
    return Done(call=of, outcome=Outcome.ANSWERED, completion=completion)


@pytest.fixture
def config() -> RunConfig:
    base = make.make_config()
    return replace(
        base,
        endpoints={"fake": CONFIG},
        teacher=replace(base.teacher, endpoint="fake"),
        referee=replace(base.referee, endpoint="fake"),
        generator=replace(base.generator, endpoint="fake"),
    )


@pytest.fixture
def run(person: Callable[[Any], User], config: RunConfig) -> Run:
    return make.make_run(person("member"), config=config)


@pytest.fixture
def job(run: Run) -> Job:
    return make.make_job(run.iterations.get(), Stage.IMITATION, Step.TEACHER_RESPONSES)


def calls_of(job: Job) -> PostgresCalls:
    return PostgresCalls(job.stage.iteration.run.run_config(), job=job)


def another_job(job: Job) -> Job:
    return make.make_job(job.stage.iteration, Stage.EVALUATION, Step.BENCHMARKS)


def assert_ledger_adds_up() -> None:
    """Every line has what its completions have."""
    for line in LedgerLine.objects.all():
        paid = line.completions.aggregate(prompt=Sum("prompt_tokens", default=0), dollars=Sum("nanodollars", default=0))
        assert (line.calls, line.prompt_tokens, line.nanodollars) == (line.completions.count(), paid["prompt"], paid["dollars"])


def test_a_call_is_permitted_to_one_and_found_by_the_other(job: Job) -> None:
    one, other = calls_of(job), calls_of(another_job(job))
    assert one.turn("fake", [], [call(1)]).permitted == {call(1).key}
    waiting = other.turn("fake", [], [call(1)])
    assert (waiting.permitted, dict(waiting.found)) == (frozenset(), {})
    assert waiting.wait_s <= 0.1
    one.turn("fake", [answered(call(1))], [])
    assert other.turn("fake", [], [call(1)]).found[call(1).key].text == "hello"
    line = LedgerLine.objects.get(role="teacher", stage="evaluation")
    assert (line.calls, line.saved, line.saved_nanodollars) == (0, 1, 9_000)
    assert_ledger_adds_up()


def test_a_turn_that_is_taken_twice_counts_once(job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [call(1), call(2)])
    ends = [answered(call(1)), Done(call=call(2), outcome=Outcome.UNANSWERED)]
    calls.turn("fake", ends, [])
    calls.turn("fake", ends, [])
    line = LedgerLine.objects.get()
    assert (line.calls, line.unanswered, line.unanswered_nanodollars) == (1, 1, call(2).most_nanodollars)
    assert_ledger_adds_up()


@pytest.mark.parametrize("most_at_once", [1, 64])
@pytest.mark.parametrize("most_calls", [1, None])
def test_a_permission_whose_news_was_lost_is_given_again_though_slots_and_budget_are_full_of_it(
    job: Job, run: Run, most_at_once: int, most_calls: int | None
) -> None:
    job.stage.iteration.run.config["endpoints"]["fake"]["max_at_once"] = most_at_once
    Budget.objects.create(run=run, most_calls=most_calls)
    calls_of(job).turn("fake", [], [call(1)])
    assert calls_of(job).turn("fake", [], [call(1)]).permitted == {call(1).key}
    assert PendingCall.objects.count() == 1


def test_a_turn_that_was_rolled_back_with_the_first_rows_of_an_endpoint_is_taken_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    permit = call_rows.permit
    failures = [OperationalError("server closed the connection unexpectedly")]

    def fail_once(*args: Any, **options: Any) -> set[str]:
        permitted = permit(*args, **options)
        if failures:
            raise failures.pop()
        return permitted

    monkeypatch.setattr(call_rows, "permit", fail_once)
    assert calls_of(job).turn("fake", [], [call(1)]).permitted == {call(1).key}


def test_a_worker_whose_job_is_over_is_permitted_nothing_and_another_is(job: Job) -> None:
    lost = calls_of(job)
    jobs.end(job, JobState.CRASHED)
    assert lost.turn("fake", [], [call(1)]).permitted == frozenset()
    assert calls_of(another_job(job)).turn("fake", [], [call(1)]).permitted == {call(1).key}


def test_a_job_is_not_ended_in_the_middle_of_a_turn(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is permitted meanwhile would be nobody's."""
    permit = call_rows.permit
    ended: list[bool] = []

    def end() -> None:
        jobs.end(Job.objects.get(pk=job.pk), JobState.CRASHED)
        ended.append(True)
        connection.close()

    ender = threading.Thread(target=end)

    def while_it_ends(*args: Any, **options: Any) -> set[str]:
        ender.start()
        ender.join(0.3)
        assert not ended
        return permit(*args, **options)

    monkeypatch.setattr(call_rows, "permit", while_it_ends)
    calls_of(job).turn("fake", [], [call(1)])
    ender.join(10)
    assert (ended, PendingCall.objects.count(), LedgerLine.objects.get().unanswered) == ([True], 0, 1)


def test_an_answer_that_cannot_be_kept_does_not_take_the_others_with_it(job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [call(n) for n in range(3)])
    ends = [answered(call(n)) for n in range(3)]
    assert ends[1].completion is not None
    ends[1] = replace(ends[1], completion=replace(ends[1].completion, text="\x00"))
    with pytest.raises(DataError):
        calls.turn("fake", ends, [])
    assert set(Completion.objects.values_list("key", flat=True)) == {call(0).key, call(2).key}
    assert_ledger_adds_up()


def test_what_a_lost_job_had_on_its_way_is_counted_and_may_be_called_again(job: Job) -> None:
    calls_of(job).turn("fake", [], [call(1), call(2)])
    later = calls_of(another_job(job))
    assert later.turn("fake", [], [call(1)]).permitted == frozenset()
    Job.objects.filter(pk=job.pk).update(lease_expires_at="2020-01-01T00:00:00Z")
    jobs.sweep()
    assert Job.objects.get(pk=job.pk).state == JobState.CRASHED
    line = LedgerLine.objects.get(stage="imitation")
    assert (line.unanswered, PendingCall.objects.count()) == (2, 0)
    assert later.turn("fake", [], [call(1)]).permitted == {call(1).key}


def test_an_answer_that_comes_after_its_job_was_given_up_is_kept(job: Job) -> None:
    late = calls_of(job)
    late.turn("fake", [], [call(1)])
    jobs.end(job, JobState.CRASHED)
    late.turn("fake", [answered(call(1))], [])
    assert Completion.objects.get().text == "hello"
    line = LedgerLine.objects.get()
    assert (line.calls, line.unanswered, line.unanswered_nanodollars) == (1, 0, 0)
    assert_ledger_adds_up()


def test_a_second_paid_answer_to_one_call_is_counted_though_only_one_is_kept(job: Job) -> None:
    late = calls_of(job)
    late.turn("fake", [], [call(1)])
    jobs.end(job, JobState.CRASHED)
    later = calls_of(another_job(job))
    later.turn("fake", [], [call(1)])
    late.turn("fake", [answered(call(1))], [])
    later.turn("fake", [answered(call(1))], [])
    lines = LedgerLine.objects.order_by("pk").values_list("calls", "unanswered", "unanswered_nanodollars")
    assert list(lines) == [(1, 0, 0), (0, 1, 9_000)]
    assert_ledger_adds_up()


def batch_call(number: int) -> Call:
    return replace(call(number), batch=True)


def test_calls_that_never_got_into_their_batch_were_not_sent(job: Job) -> None:
    calls_of(job).turn("fake", [], [batch_call(n) for n in range(50)])
    jobs.end(job, JobState.CRASHED)
    assert (LedgerLine.objects.get().unanswered, PendingCall.objects.count()) == (0, 0)


def test_the_end_of_a_lost_workers_call_leaves_the_same_call_in_anothers_batch_alone(job: Job) -> None:
    late = calls_of(job)
    late.turn("fake", [], [call(1)])
    jobs.end(job, JobState.CRASHED)
    later = calls_of(another_job(job))
    later.turn("fake", [], [batch_call(1)])
    later.open_batch("fake", "b1", [batch_call(1).key])
    late.turn("fake", [Done(call=call(1), outcome=Outcome.UNANSWERED)], [])
    assert PendingCall.objects.get().batch_id == "b1"


def test_a_batch_that_is_over_is_not_opened_by_late_news(job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [batch_call(1)])
    calls.open_batch("fake", "b1", [batch_call(1).key])
    calls.close_batch("b1", state="completed")
    calls.update_batch("b1", state="in_progress", done=1)
    assert models.Batch.objects.get().state == "completed"


def test_calls_that_wait_for_their_batch_take_no_place_of_others(job: Job) -> None:
    calls_of(job).turn("fake", [], [batch_call(n) for n in range(200)])
    assert calls_of(another_job(job)).turn("fake", [], [call(1000)]).permitted == {call(1000).key}


def test_a_batch_of_calls_that_were_given_up_is_not_opened(job: Job) -> None:
    late = calls_of(job)
    late.turn("fake", [], [batch_call(1), batch_call(2)])
    jobs.end(job, JobState.CRASHED)
    calls_of(another_job(job)).turn("fake", [], [batch_call(1)])
    with pytest.raises(LookupError, match="is permitted"):
        late.open_batch("fake", "b1", [batch_call(1).key, batch_call(2).key])


def test_the_calls_of_a_batch_whose_answers_are_lost_may_have_been_paid(job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [batch_call(1), batch_call(2)])
    calls.open_batch("fake", "b1", [batch_call(1).key, batch_call(2).key])
    calls.close_batch("b1", state="failed", error="Its file is gone.", lost=True)
    assert (LedgerLine.objects.get().unanswered, PendingCall.objects.count()) == (2, 0)


def test_a_call_that_failed_may_be_made_again(job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [call(1)])
    turn = calls.turn("fake", [Done(call=call(1), outcome=Outcome.FAILED)], [call(1)])
    assert turn.permitted == {call(1).key}
    assert LedgerLine.objects.get().failed == 1


def test_the_pace_is_one_for_all_jobs_of_a_server(job: Job) -> None:
    narrow = replace(CONFIG, max_at_once=3)
    run = job.stage.iteration.run
    Run.objects.filter(pk=run.pk).update(config={**run.config, "endpoints": {"fake": narrow.__dict__}})
    job.stage.iteration.run.refresh_from_db()
    first = calls_of(job).turn("fake", [], [call(1), call(2)])
    other = another_job(job)
    second = calls_of(other).turn("fake", [], [call(n) for n in range(3, 9)])
    assert len(first.permitted) + len(second.permitted) <= 3
    assert Pace.objects.count() == 1


@pytest.mark.parametrize("cap", [{"most_calls": 4}, {"most_nanodollars": 4 * call(1).most_nanodollars}])
def test_a_budget_permits_what_it_can_pay_and_says_what_is_missing(run: Run, job: Job, cap: dict[str, int]) -> None:
    Budget.objects.create(run=run, **cap)
    calls = calls_of(job)
    turn = calls.turn("fake", [], [call(n) for n in range(10)])
    assert 0 < len(turn.permitted) <= 4
    assert turn.refused == ""  # those under way may turn out cheaper
    made = [call(n) for n in range(10) if call(n).key in turn.permitted]
    while made:
        turn = calls.turn("fake", [Done(call=c, outcome=Outcome.UNANSWERED) for c in made], [call(n) for n in range(10)])
        made = [call(n) for n in range(10) if call(n).key in turn.permitted]
    assert f"The budget of run {run} " in turn.refused
    assert turn.refused.endswith("Raise it to go on.")
    assert LedgerLine.objects.get().unanswered == 4


def test_a_budget_of_n_calls_never_makes_one_more_with_eight_workers_at_it(run: Run, job: Job) -> None:
    Budget.objects.create(run=run, most_calls=50)
    made: list[str] = []
    lock = threading.Lock()

    def work(worker: int) -> str:
        calls = PostgresCalls(run.run_config(), job=job)
        wanted = [call(1000 * worker + n) for n in range(30)]
        done: list[Done] = []
        try:
            while True:
                turn: Turn = calls.turn("fake", done, wanted)
                if turn.refused or not wanted:
                    return turn.refused
                mine = [c for c in wanted if c.key in turn.permitted]
                wanted = [c for c in wanted if c.key not in turn.permitted]
                with lock:
                    made.extend(c.key for c in mine)
                done = [answered(c) for c in mine]
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        refusals = list(pool.map(work, range(8)))
    assert len(made) == len(set(made)) == 50
    assert all("50 of 50 calls" in refusal for refusal in refusals if refusal)
    assert any(refusals)
    assert Completion.objects.count() == LedgerLine.objects.get().calls == 50
    assert_ledger_adds_up()


def test_a_server_is_asked_as_often_as_the_budget_says_by_eight_workers_together(run: Run, job: Job) -> None:
    Budget.objects.create(run=run, most_calls=50)
    with OfflineTeacher(Knobs(latency_ms=5)) as server:
        endpoint = replace(CONFIG, base_url=server.base_url, model=MODEL)
        config = replace(run.run_config(), endpoints={"fake": endpoint})

        async def ask(worker: int) -> None:
            async with Endpoint("fake", endpoint, PostgresCalls(config, job=job), environ={}) as client:
                messages = [{"role": "user", "content": f"reverse: {worker}"}]
                asked = (client.complete("teacher", messages, ROLE, sample=n) for n in range(30))
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {records.Completion, BudgetSpent}

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda worker: asyncio.run(ask(worker)), range(8)))
        stats = server.stats()
    assert (stats["charged"], stats["answered"], Completion.objects.count(), PendingCall.objects.count()) == (50, 50, 50, 0)


def test_a_budget_that_is_set_in_the_middle_of_a_run_holds_from_the_next_call(run: Run, job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [call(1)])
    Budget.objects.create(run=run, most_calls=2)
    assert len(calls.turn("fake", [answered(call(1))], [call(n) for n in range(2, 12)]).permitted) == 1


def test_calls_that_are_given_up_while_a_budget_is_read_are_counted_all_the_same(run: Run, job: Job, config: RunConfig) -> None:
    """On another server, and so under another lock: only what the budget itself says holds the next call back."""
    elsewhere = replace(config, endpoints={"fake": replace(CONFIG, model="another")})
    Budget.objects.create(run=run, most_calls=20)
    made: list[str] = []

    def spend() -> None:
        mine = make.make_job(run.iterations.get(), Stage.DISCRIMINATION, Step.JUDGEMENTS)
        calls = PostgresCalls(elsewhere, job=mine)
        for n in range(40):
            made.extend(calls.turn("fake", [], [call(1_000 + n)]).permitted)
        connection.close()

    def lose() -> None:
        for n in range(40):
            lost = another_job(job)
            made.extend(calls_of(lost).turn("fake", [], [call(n)]).permitted)
            jobs.end(lost, JobState.CRASHED)
        connection.close()

    threads = [threading.Thread(target=work) for work in (spend, lose)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 20


def test_an_endpoints_budget_holds_for_all_runs(job: Job, person: Callable[[Any], User], config: RunConfig) -> None:
    endpoint = models.Endpoint.objects.create(name="fake", base_url=CONFIG.base_url, model="fake")
    Budget.objects.create(endpoint=endpoint, most_calls=1)
    other = make.make_run(person("admin"), config=config, name="another")
    others = make.make_job(other.iterations.get(), Stage.IMITATION, Step.TEACHER_RESPONSES)
    assert len(calls_of(job).turn("fake", [], [call(1), call(2)]).permitted) == 1
    assert calls_of(others).turn("fake", [], [call(3)]).permitted == frozenset()


def test_limits_and_prices_are_todays_and_what_makes_an_answer_is_the_runs(config: RunConfig) -> None:
    models.Endpoint.objects.create(
        name="fake", base_url=CONFIG.base_url, model="fake", rpm=60, price_input=3.0, structured="json_schema", extra="{}"
    )
    live = live_endpoints(config)["fake"]
    assert (live.rpm, live.price_input, live.structured, live.extra) == (60, 3.0, "text", "")
    models.Endpoint.objects.update(model="another")
    assert live_endpoints(config)["fake"] == CONFIG


def test_a_job_that_stopped_at_a_budget_waits_until_it_is_raised(run: Run, job: Job) -> None:
    jobs.end(job, JobState.STOPPED, reason="The budget is spent.", over_budget=True)
    assert not Job.objects.filter(state=JobState.QUEUED).exists()
    jobs.resume_run(run)
    assert Job.objects.filter(state=JobState.QUEUED).exists()


def test_an_endpoint_that_was_corrected_before_it_answered_is_taken_up_by_a_resumed_run(run: Run, job: Job) -> None:
    models.Endpoint.objects.create(name="fake", base_url="http://127.0.0.1:2/v1", model="corrected", key_env="")
    jobs.end(job, JobState.FAILED, reason="Nobody listens there.")
    jobs.resume_run(run)
    frozen = Run.objects.get(pk=run.pk).run_config().endpoints["fake"]
    assert (frozen.base_url, frozen.model) == ("http://127.0.0.1:2/v1", "corrected")


def test_an_endpoint_that_gave_answers_stays_as_the_run_froze_it(run: Run, job: Job) -> None:
    calls = calls_of(job)
    calls.turn("fake", [], [call(1)])
    calls.turn("fake", [answered(call(1))], [])
    models.Endpoint.objects.create(name="fake", base_url="http://127.0.0.1:2/v1", model="corrected", key_env="")
    jobs.end(job, JobState.FAILED, reason="Nobody listens there.")
    jobs.resume_run(run)
    assert Run.objects.get(pk=run.pk).run_config().endpoints["fake"] == CONFIG


def test_who_waits_for_the_batch_of_another_run_is_told_so_and_asks_seldom(job: Job) -> None:
    one, other = calls_of(job), calls_of(another_job(job))
    one.turn("fake", [], [batch_call(1)])
    one.open_batch("fake", "b1", [batch_call(1).key])
    one.open_batch("fake", "b1", [batch_call(1).key])  # the news of the first commit was lost
    waiting = other.turn("fake", [], [call(1)])
    assert (waiting.permitted, waiting.wait_s) == (frozenset(), 5.0)
    assert waiting.waits_for is not None
    assert "1 call waits for batch b1 of run calm-lion-1, handed over at" in waiting.waits_for
    assert other.turn("fake", [], [call(2)]).waits_for == ""
