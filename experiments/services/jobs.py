"""Jobs: made, claimed, kept alive by a lease, ended, and found again when they are lost.

The database is the truth. A broker message only says "look at job N": it may be lost or come twice without harm.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery import current_app
from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Now
from django.utils import timezone

from experiments.models import Budget, Imitation, Iteration, Job, PendingCall, Run, Stage
from experiments.querysets import latest_jobs, move
from experiments.querysets_calls import over_budget_jobs
from experiments.querysets_reviews import may_judge_again
from experiments.services.budgets import has_new_room
from experiments.services.calls import give_up, give_up_calls_of
from experiments.services.endpoints import take_up_corrections
from experiments.states import LIVE, MOST_CRASHES, JobState, Queue
from lionweb.broker import BROKER_ERRORS, delete_delivered_messages
from trainer.errors import ConfigError
from trainer.plan import GPU_STEPS, Planned, Step, plan
from trainer.plan import Stage as StageName
from trainer.text import storable

logger = logging.getLogger(__name__)

RESEND_AFTER = timedelta(seconds=30)
"""A queued job nobody has taken is announced again: its message may have been lost."""


def advance(run_id: int, *, retry: bool = False) -> None:
    """Queue what comes next in a run: the first step that is not done, and the evaluation of every tuned checkpoint.

    A step whose last job failed or was stopped waits for a person (`retry`); one whose job crashed is tried again.
    """
    with transaction.atomic():
        run = _locked(run_id)
        if run.stop_requested_at is not None:
            return
        last = {
            (job.stage.iteration.number, job.step): job
            for job in latest_jobs().filter(stage__iteration__run=run).select_related("stage__iteration")
        }
        for planned in _due(run, last):
            job = last.get((planned.iteration, planned.step))
            if job is None or retry:
                _queue(run, planned)
            elif _may_try_again(job):
                _queue(run, planned, use_saved=job.use_saved)


def _due(run: Run, last: dict[tuple[int, str], Job]) -> list[Planned]:
    """Steps that may start now and have no live job: the next of the chain, and evaluations beside it."""

    def state(iteration: int, step: Step) -> str:
        job = last.get((iteration, step))
        return job.state if job else ""

    todo = [p for p in plan(run.run_config()) if state(p.iteration, p.step) != JobState.FINISHED]
    chain = [p for p in todo if p.stage is not StageName.EVALUATION][:1]
    beside = [p for p in todo if p.stage is StageName.EVALUATION and state(p.iteration, Step.TUNING) == JobState.FINISHED]
    return [p for p in chain + beside if state(p.iteration, p.step) not in LIVE]


def _may_try_again(job: Job) -> bool:
    if job.state != JobState.CRASHED:
        return False
    recent = job.stage.jobs.filter(step=job.step).order_by("-id").values_list("state", flat=True)[:MOST_CRASHES]
    return not (len(recent) == MOST_CRASHES and all(state == JobState.CRASHED for state in recent))


def _queue(run: Run, planned: Planned, *, use_saved: bool = False) -> Job:
    iteration, _ = Iteration.objects.get_or_create(run=run, number=planned.iteration)
    stage, _ = Stage.objects.get_or_create(iteration=iteration, name=planned.stage)
    queue = Queue.GPU if planned.step in GPU_STEPS else Queue.TEACHER
    job = Job.objects.create(stage=stage, step=planned.step, queue=queue, use_saved=use_saved)
    transaction.on_commit(lambda: announce(job))
    return job


def announce(job: Job) -> None:
    """Tell a worker of the job's queue to look at it. A broker that is down is no failure: the sweep announces again."""
    try:
        current_app.send_task("experiments.tasks.run_job", args=[job.pk], queue=job.queue)
    except BROKER_ERRORS as error:
        logger.warning("job %s could not be announced: %s", job.pk, error)
        return
    Job.objects.filter(pk=job.pk).update(sent_at=timezone.now())


def claim(job_id: int, *, worker: str) -> Job | None:
    """Take a queued job for a worker, or None where it is no longer to be had."""
    if not move(job_id, JobState.RUNNING, worker=worker, started_at=Now(), lease_expires_at=_lease_end()):
        return None
    return Job.objects.select_related("stage__iteration__run").get(pk=job_id)


@dataclass(frozen=True)
class Beat:
    """What a heartbeat found: whether the job is still ours, and whether somebody asked for its run to stop."""

    held: bool
    stop: bool


def heartbeat(job: Job, *, items_done: int, note: str = "") -> Beat:
    """Renew the lease of a running job, and write down how far it is and what it waits for."""
    held = Job.objects.filter(pk=job.pk, state=JobState.RUNNING, worker=job.worker)
    if not held.update(lease_expires_at=_lease_end(), items_done=items_done, note=storable(note)):
        return Beat(held=False, stop=True)
    return Beat(held=True, stop=Run.objects.filter(pk=_run_id(job), stop_requested_at__isnull=False).exists())


def begin_items(job: Job, *, before: int, total: int) -> None:
    """Write down how many items the step has, and how many earlier jobs did."""
    Job.objects.filter(pk=job.pk).update(items_before=min(before, total) if total else 0, items_done=before, items_total=total)


def end(
    job: Job,
    state: str,
    *,
    only_if: Q | None = None,
    reason: str = "",
    note: str = "",
    items_done: int | None = None,
    over_budget: bool = False,
    config_at_fault: bool = False,
) -> bool:
    """End a job, and queue what comes next. False where the job is no longer as `only_if` says; None: held by this worker.

    A job that stopped although nobody asks its run to stop (its worker shuts down, or the run was resumed meanwhile) is followed
    by a new one at once; one that stopped at a budget waits until that is raised, unless it was raised meanwhile. Where the run's
    config cannot be read, nobody knows what comes next: the job failed.
    """
    with transaction.atomic():
        run = _locked(_run_id(job))
        if state in (JobState.FINISHED, JobState.CRASHED) and (problem := _unreadable(run)):
            state, reason = JobState.FAILED, f"{reason} {problem}".strip()
        values: dict[str, Any] = {"reason": storable(reason), "note": storable(note), "ended_at": Now()}
        values |= {"over_budget": over_budget, "config_at_fault": config_at_fault}
        if items_done is not None:
            values["items_done"] = items_done
        if not move(job.pk, state, only_if=Q(worker=job.worker) if only_if is None else only_if, **values):
            return False
        give_up_calls_of(job)
        if state in (JobState.FINISHED, JobState.CRASHED):
            advance(run.pk)
        elif state == JobState.STOPPED and run.stop_requested_at is None and (not over_budget or has_new_room(job)):
            _queue_again(run, job)
    logger.info("job %s %s %s", job.pk, state, reason)
    return True


def _unreadable(run: Run) -> str:
    """Why the run's config cannot be read; "" where it can."""
    try:
        run.run_config()
    except ConfigError as error:
        return str(error)
    return ""


def stop_run(run: Run) -> None:
    """Ask a run to stop: queued jobs stop at once, running ones at their next heartbeat, keeping what they have."""
    with transaction.atomic():
        Run.objects.filter(pk=run.pk).update(stop_requested_at=Now())
        for job_id in _jobs(run).filter(state=JobState.QUEUED).values_list("pk", flat=True):
            move(
                job_id,
                JobState.STOPPED,
                only_if=Q(state=JobState.QUEUED),  # a worker may have claimed it since: that one stops at its next heartbeat
                reason="The run was stopped before this job began.",
                ended_at=Now(),
            )


def resume_run(run: Run) -> list[str]:
    """Go on with a run that was stopped or failed; what is done stays done.

    An endpoint that was corrected before it gave the run any answer is taken up as it is now. Gives the roles that leave batch mode,
    since their endpoint offers no Batch API. Raises ConfigError where the run's config cannot be read.
    """
    with transaction.atomic():
        out_of_batch = take_up_corrections(_locked(run.pk))
        Run.objects.filter(pk=run.pk).update(stop_requested_at=None)
        advance(run.pk, retry=True)
    return out_of_batch


def use_save(run: Run) -> list[str]:
    """Take the last save of a tuning that ended before its time as the iteration's checkpoint, and go on with the run from there.

    Gives what `resume_run` gives. Raises ConfigError where there is no such save, or the run's config cannot be read.
    """
    with transaction.atomic():
        locked = _locked(run.pk)
        job = _unfinished_tuning(locked)
        if job is None:
            raise ConfigError("There is no save to use: no tuning of this run ended before its last step and left one.")
        _queue_again(locked, job, use_saved=True)
        return resume_run(run)


def judge_again(iteration: Iteration) -> None:
    """Queue the judging of an iteration once more: it tries again what is quarantined and was not left out.

    Raises ConfigError where the run is at work, where judging is not over, or where new instructions were made by the verdicts.
    """
    with transaction.atomic():
        run = _locked(iteration.run_id)
        if not may_judge_again(iteration):
            raise ConfigError("Nothing can be tried again here: the run is at work, or new instructions were made by these verdicts.")
        Run.objects.filter(pk=run.pk).update(stop_requested_at=None)
        _queue(run, Planned(iteration.number, StageName.DISCRIMINATION, Step.JUDGEMENTS))


def _unfinished_tuning(run: Run) -> Job | None:
    """The run's last tuning, where it ended early and a save of it is kept."""
    last = _jobs(run).filter(step=Step.TUNING).select_related("stage__iteration").order_by("-id").first()
    if last is None or last.state in LIVE or last.state == JobState.FINISHED:
        return None
    return last if Imitation.objects.filter(iteration=last.stage.iteration, saved_step__isnull=False).exists() else None


def go_on_from_budgets() -> int:
    """Queue again what stopped at a budget that was set since, and has room now. Gives how many runs go on."""
    of_job = Q(run=OuterRef("stage__iteration__run")) | Q(endpoint__isnull=False)
    set_since = Budget.objects.filter(of_job, set_at__gt=OuterRef("started_at"))
    return len({_run_id(job) for job in over_budget_jobs().filter(Exists(set_since)) if _go_on(job)})


@transaction.atomic
def _go_on(job: Job) -> bool:
    run = _locked(_run_id(job))
    if not over_budget_jobs().filter(pk=job.pk).exists() or not has_new_room(job):
        return False
    _queue_again(run, job)
    return True


def sweep() -> dict[str, int]:
    """End jobs whose lease is over, so that they are tried again; announce queued ones again that nobody took; tidy the broker.

    Also queue again what a raised budget left behind, and give up calls that nobody is making any more.
    """
    lost = 0
    lease_is_over = Q(lease_expires_at__lt=Now())
    for job in Job.objects.filter(lease_is_over, state=JobState.RUNNING).select_related("stage__iteration"):
        lost += _end_lost(job, only_if=lease_is_over)
    waiting = Job.objects.filter(state=JobState.QUEUED).filter(Q(sent_at__isnull=True) | Q(sent_at__lt=timezone.now() - RESEND_AFTER))
    unannounced = list(waiting)
    for job in unannounced:
        announce(job)
    return {
        "lost": lost,
        "announced": len(unannounced),
        "gone_on": go_on_from_budgets(),
        "given_up": _give_up_lost_calls(),
        "messages": delete_delivered_messages(),
    }


def _end_lost(job: Job, *, only_if: Q) -> bool:
    """End a job whose worker is gone. The outer edge: what is wrong with one job keeps no other from being swept."""
    reason = f"Worker {job.worker} was not heard of any more; the job was given to another."
    try:
        return end(job, JobState.CRASHED, only_if=only_if, reason=reason)
    except (OperationalError, InterfaceError):  # the database is away: for all of them
        raise
    except Exception:
        logger.exception("lost job %s could not be ended", job.pk)
        return False


@transaction.atomic
def _give_up_lost_calls() -> int:
    """End calls of no job and no batch whose lease is over: whoever made them died."""
    of_nobody = PendingCall.objects.filter(job=None, batch=None, expires_at__lt=Now())
    lost = list(of_nobody.order_by("pk").select_for_update(skip_locked=True))
    give_up(lost)
    return len(lost)


def _queue_again(run: Run, job: Job, *, use_saved: bool = False) -> None:
    planned = Planned(job.stage.iteration.number, StageName(job.stage.name), Step(job.step))
    _queue(run, planned, use_saved=use_saved or job.use_saved)


def _locked(run_id: int) -> Run:
    """The run, locked for the transaction against other changes of its jobs; rows that refer to it may still be made.

    Whoever locks more takes the run first, then the job, its pending calls, ledger lines, and budgets last.
    """
    return Run.objects.select_for_update(no_key=True).get(pk=run_id)


def _jobs(run: Run) -> QuerySet[Job]:
    return Job.objects.filter(stage__iteration__run=run)


def _run_id(job: Job) -> int:
    return job.stage.iteration.run_id


def _lease_end() -> CombinedExpression:
    return Now() + timedelta(seconds=settings.LIONWEB_LEASE_S)
