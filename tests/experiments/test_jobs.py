"""Jobs: one claim wins, leases expire, and whatever a worker does the next step is queued once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from experiments.models import Imitation, Instruction, Job, Run, Verdict
from experiments.querysets import move, runs_with_state
from experiments.services import jobs, runs
from experiments.states import LIVE, MOST_CRASHES, MOVES, JobState, RunState
from tests import make
from trainer.config import EvaluationConfig
from trainer.errors import ConfigError
from trainer.plan import Step


@pytest.fixture
def run(person: Callable[[Any], User]) -> Run:
    """A run that was just launched: its first job is queued."""
    owner = person("member")
    config = replace(make.make_config(iterations=1), evaluation=EvaluationConfig())
    return runs.launch(config, experiment=make.make_experiment(owner), seed_pool=make.make_pool(), owner=owner)


def only_live_job(run: Run) -> Job:
    return Job.objects.get(stage__iteration__run=run, state__in=LIVE)


def claimed(run: Run, worker: str = "one") -> Job:
    job = jobs.claim(only_live_job(run).pk, worker=worker)
    assert job is not None
    return job


def finish_next(run: Run) -> Job:
    job = claimed(run)
    assert jobs.end(job, JobState.FINISHED)
    return job


def state_of(run: Run) -> str:
    return str(runs_with_state().get(pk=run.pk).state)


def expire(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))


FORBIDDEN = [(source, target) for source in JobState for target in JobState if target not in MOVES[source]]


@pytest.mark.parametrize(("source", "target"), FORBIDDEN)
def test_no_job_moves_outside_moves(run: Run, source: str, target: str) -> None:
    job = only_live_job(run)
    Job.objects.filter(pk=job.pk).update(state=source, worker="one", lease_expires_at=timezone.now())
    assert not move(job.pk, target)
    job.refresh_from_db()
    assert job.state == source


def test_a_launch_copies_the_seeds_and_queues_the_first_step(run: Run) -> None:
    assert list(run.instructions.values_list("key", "origin").order_by("position"))[:2] == [
        ("seed-000000", "seed"),
        ("seed-000001", "seed"),
    ]
    assert (only_live_job(run).step, only_live_job(run).queue) == (Step.PREFLIGHT, "gpu")
    assert state_of(run) == RunState.QUEUED


def test_an_empty_pool_launches_nothing(person: Callable[[Any], User]) -> None:
    owner = person("member")
    with pytest.raises(ConfigError, match="is empty"):
        runs.launch(make.make_config(), experiment=make.make_experiment(owner), seed_pool=make.make_pool(size=0), owner=owner)
    assert not Run.objects.exists()


def test_only_one_of_two_workers_gets_a_job(run: Run) -> None:
    job = only_live_job(run)
    assert jobs.claim(job.pk, worker="one") is not None
    assert jobs.claim(job.pk, worker="two") is None
    job.refresh_from_db()
    assert job.worker == "one"


def test_a_step_never_has_two_live_jobs(run: Run) -> None:
    job = only_live_job(run)
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.create(stage=job.stage, step=job.step, queue=job.queue)


def test_the_steps_follow_one_another_to_the_end(run: Run) -> None:
    done = []
    while state_of(run) != RunState.FINISHED:
        done.append(finish_next(run).step)
    first, later = ["preflight", "teacher_responses", "tuning"], ["teacher_responses", "tuning"]
    assert done == [*first, "student_responses", "judgements", "candidates", *later]


def test_evaluation_runs_beside_the_next_iteration(person: Callable[[Any], User]) -> None:
    owner = person("member")
    config = make.make_config(iterations=1)
    run = runs.launch(config, experiment=make.make_experiment(owner), seed_pool=make.make_pool(), owner=owner)
    for _ in range(3):
        finish_next(run)
    live = Job.objects.filter(stage__iteration__run=run, state__in=LIVE).order_by("id")
    assert [job.step for job in live] == ["student_responses", "benchmarks"]


def test_a_job_whose_worker_is_silent_goes_to_another(run: Run) -> None:
    lost = claimed(run)
    expire(lost)
    assert jobs.sweep()["lost"] == 1
    lost.refresh_from_db()
    assert (lost.state, only_live_job(run).state) == (JobState.CRASHED, JobState.QUEUED)
    assert only_live_job(run).pk != lost.pk


def test_a_worker_that_comes_back_late_finds_its_job_gone_and_ends_nothing(run: Run) -> None:
    late = claimed(run)
    expire(late)
    jobs.sweep()
    successor = claimed(run, worker="two")
    assert not jobs.heartbeat(late, items_done=3).held
    assert not jobs.end(late, JobState.FINISHED)
    successor.refresh_from_db()
    assert successor.state == JobState.RUNNING


def break_config(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(config={**run.config, "of_another_version": 1})


def test_a_lost_job_of_a_run_that_cannot_be_read_fails_in_words_and_holds_no_other_up(run: Run) -> None:
    unreadable = make.make_run(run.owner, name="unreadable")
    jobs.advance(unreadable.pk)
    broken, sound = claimed(unreadable), claimed(run)
    break_config(unreadable)
    expire(broken)
    expire(sound)
    assert jobs.sweep()["lost"] == 2
    broken.refresh_from_db()
    assert broken.state == JobState.FAILED
    assert "of_another_version" in broken.reason
    assert only_live_job(run).state == JobState.QUEUED


def test_an_error_with_one_lost_job_leaves_the_others_to_be_swept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make.make_run(run.owner, name="other")
    jobs.advance(other.pk)
    bad, sound = claimed(run), claimed(other)
    expire(bad)
    expire(sound)
    grasp = jobs.end

    def end(job: Job, state: str, **values: Any) -> bool:
        if job.pk == bad.pk:
            raise ValueError("nobody foresaw this")
        return grasp(job, state, **values)

    monkeypatch.setattr(jobs, "end", end)
    assert jobs.sweep()["lost"] == 1
    assert only_live_job(other).state == JobState.QUEUED


def test_a_run_that_offends_a_newer_check_of_endpoints_goes_on(run: Run) -> None:
    run.config["endpoints"]["offline"] |= {"base_url": "https://x.example/v1?api-version=preview", "price_cached": 5.0}
    run.save()
    job = claimed(run)
    expire(job)
    jobs.sweep()
    assert only_live_job(run).step == job.step


def test_a_heartbeat_keeps_a_job_from_the_sweep_and_tells_how_far_it_is(run: Run) -> None:
    job = claimed(run)
    expire(job)
    assert jobs.heartbeat(job, items_done=7).held
    assert jobs.sweep()["lost"] == 0
    job.refresh_from_db()
    assert (job.state, job.items_done) == (JobState.RUNNING, 7)


def test_a_step_that_crashes_again_and_again_is_given_up_with_the_run_failed(run: Run) -> None:
    for _ in range(MOST_CRASHES):
        assert jobs.end(claimed(run), JobState.CRASHED, reason="killed")
    assert not Job.objects.filter(state__in=LIVE).exists()
    assert state_of(run) == RunState.FAILED
    jobs.resume_run(run)
    assert state_of(run) == RunState.RUNNING


def test_a_failed_step_waits_for_a_person_and_resume_tries_it_again(run: Run) -> None:
    jobs.end(claimed(run), JobState.FAILED, reason="The endpoint could not be reached.")
    assert state_of(run) == RunState.FAILED
    jobs.advance(run.pk)
    assert not Job.objects.filter(state__in=LIVE).exists()
    jobs.resume_run(run)
    assert only_live_job(run).step == Step.PREFLIGHT


def test_a_stop_ends_what_is_queued_at_once_and_what_runs_at_its_next_heartbeat(run: Run) -> None:
    job = claimed(run)
    jobs.stop_run(run)
    assert state_of(run) == RunState.STOPPING
    assert jobs.heartbeat(job, items_done=0).stop
    jobs.end(job, JobState.STOPPED)
    assert state_of(run) == RunState.STOPPED
    jobs.resume_run(run)
    assert only_live_job(run).step == job.step


def test_a_stop_before_the_first_job_began_stops_it(run: Run) -> None:
    jobs.stop_run(run)
    assert state_of(run) == RunState.STOPPED
    assert not Job.objects.filter(state__in=LIVE).exists()


def test_a_stopped_run_goes_no_further_when_its_last_job_finishes(run: Run) -> None:
    job = claimed(run)
    jobs.stop_run(run)
    jobs.end(job, JobState.FINISHED)
    assert not Job.objects.filter(state__in=LIVE).exists()
    jobs.resume_run(run)
    assert only_live_job(run).step == Step.TEACHER_RESPONSES


@pytest.fixture
def tuning(run: Run) -> Job:
    """A tuning that runs, with a save of step 4 of 9."""
    finish_next(run)
    finish_next(run)
    job = claimed(run)
    assert job.step == Step.TUNING
    make.make_imitation(job.stage.iteration, saved_step=4, steps=9)
    return job


@pytest.mark.parametrize("state", [JobState.STOPPED, JobState.FAILED])
def test_a_save_is_used_by_a_tuning_of_its_own_and_the_run_goes_on_with_the_next_step(run: Run, tuning: Job, state: str) -> None:
    if state == JobState.STOPPED:
        jobs.stop_run(run)
    jobs.end(tuning, state, reason="Stopped at step 4 of 9.")
    jobs.use_save(run)
    using = only_live_job(run)
    assert (using.step, using.queue, using.use_saved) == (Step.TUNING, "gpu", True)
    assert state_of(run) == RunState.RUNNING
    assert finish_next(run).pk == using.pk
    assert (only_live_job(run).step, only_live_job(run).use_saved) == (Step.STUDENT_RESPONSES, False)


def test_a_worker_that_ends_while_a_save_is_used_leaves_that_to_the_next(run: Run, tuning: Job) -> None:
    jobs.end(tuning, JobState.FAILED, reason="The loss diverges.")
    jobs.use_save(run)
    jobs.end(claimed(run), JobState.STOPPED, reason="The worker was shut down.")
    assert only_live_job(run).use_saved
    jobs.end(claimed(run), JobState.CRASHED, reason="killed")
    assert only_live_job(run).use_saved


def test_resume_tunes_on_where_a_save_could_not_be_used(run: Run, tuning: Job) -> None:
    jobs.end(tuning, JobState.FAILED, reason="The loss diverges.")
    jobs.use_save(run)
    jobs.end(claimed(run), JobState.FAILED, reason="There is no whole save.")
    jobs.resume_run(run)
    assert (only_live_job(run).step, only_live_job(run).use_saved) == (Step.TUNING, False)


def test_nothing_is_used_of_a_tuning_that_runs_or_is_done_or_left_no_save(run: Run, tuning: Job) -> None:
    with pytest.raises(ConfigError, match="no save to use"):  # it runs
        jobs.use_save(run)
    jobs.stop_run(run)
    jobs.end(tuning, JobState.STOPPED)
    Imitation.objects.update(saved_step=None)
    with pytest.raises(ConfigError, match="no save to use"):
        jobs.use_save(run)
    assert state_of(run) == RunState.STOPPED
    Imitation.objects.update(saved_step=4)
    jobs.resume_run(run)
    finish_next(run)
    with pytest.raises(ConfigError, match="no save to use"):  # it is done
        jobs.use_save(run)
    assert Job.objects.filter(use_saved=True).count() == 0


def test_two_who_use_a_save_at_once_make_one_job(run: Run, tuning: Job) -> None:
    jobs.end(tuning, JobState.FAILED, reason="The loss diverges.")
    jobs.use_save(run)
    with pytest.raises(ConfigError, match="no save to use"):
        jobs.use_save(run)
    assert Job.objects.filter(use_saved=True).count() == 1


def test_a_worker_that_shuts_down_gives_its_job_back(run: Run) -> None:
    job = claimed(run)
    jobs.end(job, JobState.STOPPED, reason="The worker was shut down.", items_done=5)
    job.refresh_from_db()
    assert (job.state, job.items_done) == (JobState.STOPPED, 5)
    assert only_live_job(run).step == job.step


def test_a_run_resumed_while_its_job_still_stops_goes_on(run: Run) -> None:
    job = claimed(run)
    jobs.stop_run(run)
    jobs.resume_run(run)
    jobs.end(job, JobState.STOPPED)
    assert only_live_job(run).step == job.step


def test_a_heartbeat_between_the_sweeps_look_and_its_grasp_saves_the_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = claimed(run)
    expire(job)
    grasp = jobs.end

    def late_heartbeat(*args: Any, **values: Any) -> bool:
        jobs.heartbeat(job, items_done=1)
        return grasp(*args, **values)

    monkeypatch.setattr(jobs, "end", late_heartbeat)
    assert jobs.sweep()["lost"] == 0
    job.refresh_from_db()
    assert job.state == JobState.RUNNING


def test_a_job_claimed_while_its_run_is_stopped_is_left_to_its_worker(run: Run) -> None:
    job = claimed(run)
    assert not move(job.pk, JobState.STOPPED, only_if=Q(state=JobState.QUEUED))
    jobs.stop_run(run)
    job.refresh_from_db()
    assert job.state == JobState.RUNNING


def test_hostile_text_in_a_reason_is_kept_without_what_a_database_refuses(run: Run) -> None:
    job = claimed(run)
    assert jobs.end(job, JobState.FAILED, reason="bad \x00 and \ud83d words")
    job.refresh_from_db()
    assert job.reason == "bad  and ? words"


def test_a_job_nobody_took_is_announced_again(run: Run) -> None:
    Job.objects.update(sent_at=timezone.now() - jobs.RESEND_AFTER - timedelta(seconds=1))
    assert jobs.sweep()["announced"] == 1
    assert jobs.sweep()["announced"] == 0


@pytest.mark.parametrize(
    "values",
    [
        {"label": "easy"},
        {"label": "quarantined", "reason": ""},
        {"label": "quarantined", "reason": "unreadable", "discrepancy": 0.0},
        {"label": "hard", "discrepancy": 1.0, "teacher_score": 11.0, "student_score": 10.0},
    ],
)
def test_the_database_refuses_a_verdict_without_a_number_and_a_number_in_quarantine(run: Run, values: dict[str, Any]) -> None:
    instruction = Instruction.objects.filter(run=run)[0]
    with pytest.raises(IntegrityError), transaction.atomic():
        Verdict.objects.create(instruction=instruction, iteration=instruction.iteration, **values)


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_jobs_change_still_lets_others_write_rows_that_refer_to_it(run: Run) -> None:
    """A worker's turn makes ledger lines of the run while another process ends one of its jobs: neither may wait for the other."""

    def make_line_elsewhere() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '2s'")
            make.make_line(run)
        finally:
            connection.close()

    job = claimed(run)
    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        assert jobs.end(job, JobState.STOPPED)
        pool.submit(make_line_elsewhere).result()
    assert run.ledger.count() == 1
