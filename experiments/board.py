"""The loop as the run page draws it: every planned step of every iteration, with what its rows say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from statistics import harmonic_mean
from typing import Any

from django.conf import settings
from django.utils import timezone

from experiments import querysets
from experiments.checkpoint_health import damaged
from experiments.imitation_board import ImitationView, read_imitations, tokens_per_step
from experiments.models import BenchmarkScore, Checkpoint, Errand, Imitation, Iteration, Job, Metric, Run
from experiments.querysets_curves import ENDS, LoggedStep, logged_steps
from experiments.states import LIVE, JobState, RunState, StageState
from trainer.plan import STEPS, Stage, Step, plan

STAGE_ORDER = (Stage.DISCRIMINATION, Stage.GENERATION, Stage.IMITATION, Stage.EVALUATION)

LIVE_RUN = frozenset({RunState.QUEUED, RunState.RUNNING, RunState.STOPPING})
"""A run in one of these states changes by itself: its page asks again."""

WAITING_RUN = frozenset({RunState.FAILED, RunState.STOPPED})
"""A run in one of these states goes on once a person says so, maybe on another page: its page asks now and then."""

ASKS_SELDOM_FOR = timedelta(hours=1)

UNITS = {Step.TUNING: "steps", Step.CANDIDATES: "new", Step.BENCHMARKS: "answers", Step.JUDGEMENTS: "judged"}

RECENT_STEPS = ENDS
"""The speed of a tuning is told by so many of its last logged steps."""


@dataclass(frozen=True, kw_only=True)
class StepView:
    """One step: its latest job, and how far it is."""

    name: str
    unit: str
    state: str
    job: Job | None
    attempts: int
    done: int
    total: int
    per_s: float | None
    left: timedelta | None
    took: timedelta | None = None
    """What its attempts that are over took, together."""
    unheard: timedelta | None = None
    """How long its worker has not been heard of, where that is too long to be well."""
    others: int = 0
    """Running jobs of its queue, where it waits for a worker."""

    @property
    def words(self) -> str:
        return step_words(self.name, use_saved=self.job is not None and self.job.use_saved)

    @property
    def percent(self) -> float:
        return min(100.0, 100 * self.done / self.total) if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class StageView:
    name: str
    state: str
    steps: Sequence[StepView]

    @property
    def failures(self) -> list[Job]:
        return [step.job for step in self.steps if step.job and step.job.state in (JobState.FAILED, JobState.CRASHED)]


@dataclass(frozen=True, kw_only=True)
class IterationView:
    """One turn of the loop. The counts are None where the run has not come so far."""

    number: int
    row: Any
    stages: Sequence[StageView | None]
    train_pool: int | None
    cache_pool: int | None
    rejected: dict[str, int]
    checkpoint: Checkpoint | None
    scores: Sequence[BenchmarkScore]

    @property
    def rejected_total(self) -> int:
        return sum(self.rejected.values())

    @property
    def cache_until(self) -> int:
        """The cache pool holds what was made up to this iteration."""
        return self.number - 1


@dataclass(frozen=True, kw_only=True)
class Board:
    run: Any
    iterations: Sequence[IterationView]
    jobs: Sequence[Any]
    metrics: Sequence[LoggedStep]
    scores: Sequence[BenchmarkScore]
    imitations: Sequence[ImitationView] = ()
    """Those that something is known of, the newest first."""
    damaged: frozenset[int] = frozenset()
    """Ids of checkpoints whose files the last check of them found damaged."""

    @property
    def live(self) -> bool:
        return self.run.state in LIVE_RUN

    @property
    def waiting(self) -> bool:
        """Whether somebody may make the run go on."""
        return self.run.state in WAITING_RUN

    @property
    def asks_seldom(self) -> bool:
        """Whether the page of a waiting run still asks: somebody may yet look at why it waits. After that, a reload tells."""
        ended = [job.ended_at for job in self.jobs if job.ended_at]
        return self.waiting and bool(ended) and timezone.now() - max(ended) < ASKS_SELDOM_FOR

    @property
    def attempts(self) -> list[tuple[Job, int]]:
        """Every job with the items its rows tell are done, newest first."""
        latest = {step.job.pk: step.done for step in self._steps if step.job and step.job.items_total}
        return [(job, latest.get(job.pk, job.done)) for job in reversed(self.jobs)]

    @property
    def _steps(self) -> list[StepView]:
        return [step for iteration in self.iterations for stage in iteration.stages if stage for step in stage.steps]

    @property
    def now(self) -> list[tuple[IterationView, StageView, StepView]]:
        """The steps that have a live job."""
        return [
            (iteration, stage, step)
            for iteration in self.iterations
            for stage in iteration.stages
            if stage
            for step in stage.steps
            if step.state in LIVE
        ]

    @property
    def unheard(self) -> timedelta | None:
        """The longest that a worker of a running step has not been heard of, where that is too long to be well."""
        return max((step.unheard for _, _, step in self.now if step.unheard), default=None)

    @property
    def failures(self) -> list[Job]:
        return [job for iteration in self.iterations for stage in iteration.stages if stage for job in stage.failures]

    @property
    def config_at_fault(self) -> bool:
        """Whether a setting failed it, so that another run with another config is what helps."""
        return any(job.config_at_fault for job in self.failures)

    @property
    def saved(self) -> ImitationView | None:
        """The imitation whose tuning ended early and left a save that can be gone on from, or used as it is."""
        return next((imitation for imitation in self.imitations if imitation.has_save_to_use), None)

    @property
    def evaluated(self) -> bool:
        """Whether the run measures anything."""
        return any(stage and stage.name == Stage.EVALUATION for iteration in self.iterations for stage in iteration.stages)

    @property
    def has_checkpoints(self) -> bool:
        return any(iteration.checkpoint for iteration in self.iterations)

    @property
    def judged(self) -> list[IterationView]:
        return [iteration for iteration in self.iterations if iteration.row and iteration.row.judged]


def read_board(run: Run, *, now: datetime | None = None) -> Board:
    """Everything the run page shows, in a fixed number of queries. `run` comes from `runs_with_state`."""
    jobs = list(querysets.jobs_with_done().filter(stage__iteration__run=run).select_related("stage__iteration").order_by("id"))
    rows = list(querysets.iterations_with_counts(run))
    metrics = logged_steps([row.pk for row in rows])
    scores = list(querysets.macro_scores([run]))
    checkpoints = {c.iteration_id: c for c in Checkpoint.objects.filter(iteration__run=run).defer("manifest")}
    there = [checkpoint.pk for checkpoint in checkpoints.values() if not checkpoint.deleted_at]
    config = run.run_config()
    sizes = _pool_sizes(rows, accumulated=config.loop.train_pool == "accumulate")
    imitations = {imitation.iteration_id: imitation for imitation in Imitation.objects.filter(iteration__run=run)}
    planned_tokens = {row.number: tokens_per_step(imitations.get(row.pk)) for row in rows}
    steps = _step_views(jobs, metrics, _counted(rows, jobs), now or timezone.now(), planned_tokens)
    rejected = querysets.rejected_by_fate(run)
    by_number: dict[int, Iteration] = {row.number: row for row in rows}

    def view(number: int, stages: dict[Stage, list[StepView]]) -> IterationView:
        row = by_number.get(number)
        train_pool, cache_pool = sizes.get(number, (None, None))
        return IterationView(
            number=number,
            row=row,
            stages=[_stage_view(name, stages[name]) if name in stages else None for name in STAGE_ORDER],
            train_pool=train_pool,
            cache_pool=cache_pool,
            rejected=rejected.get(number, {}),
            checkpoint=checkpoints.get(row.pk) if row else None,
            scores=[score for score in scores if row and score.iteration_id == row.pk],
        )

    planned: dict[int, dict[Stage, list[StepView]]] = {}
    for p in plan(config):
        step = steps.get((p.iteration, p.step)) or _waiting(p.step)
        planned.setdefault(p.iteration, {}).setdefault(p.stage, []).append(step)
    iterations = [view(number, stages) for number, stages in planned.items()]
    shown = read_imitations(rows, imitations, metrics, {number: step for (number, name), step in steps.items() if name == Step.TUNING})
    return Board(
        run=run,
        iterations=iterations,
        jobs=jobs,
        metrics=metrics,
        scores=scores,
        imitations=shown,
        damaged=frozenset(damaged(there)) if there else frozenset(),
    )


def _pool_sizes(rows: Sequence[Any], *, accumulated: bool) -> dict[int, tuple[int, int]]:
    """iteration number -> (train pool, cache pool), from what each iteration made."""
    so_far = list(accumulate((row.made for row in rows), initial=0))
    return {row.number: (so_far[i + 1] if accumulated else row.made, so_far[i]) for i, row in enumerate(rows)}


def _counted(rows: Sequence[Any], jobs: Sequence[Job]) -> dict[tuple[int, str], int]:
    """Items done as the rows tell: ahead of the last heartbeat, in agreement with the counts beside them, and after a crash as well."""
    counted: dict[tuple[int, str], int] = {}
    for row in rows:
        counted[row.number, Step.JUDGEMENTS] = row.judged
        counted[row.number, Step.CANDIDATES] = row.accepted
    for job in {(job.stage_id, job.step): job for job in jobs}.values():
        place = (job.stage.iteration.number, job.step)
        if job.items_total and job.state != JobState.FINISHED and place not in counted:
            counted[place] = querysets.items_done(job.step, job.stage.iteration)
    return counted


def _step_views(
    jobs: Sequence[Job],
    metrics: Sequence[LoggedStep],
    counted: Mapping[tuple[int, str], int],
    now: datetime,
    planned_tokens: Mapping[int, float | None],
) -> dict[tuple[int, str], StepView]:
    """planned_tokens: iteration number -> response tokens in a step of its tuning."""
    attempts: dict[tuple[int, str], list[Job]] = {}
    for job in jobs:
        attempts.setdefault((job.stage.iteration.number, job.step), []).append(job)
    logged: dict[int, list[LoggedStep]] = {}
    for metric in metrics:
        logged.setdefault(metric.job_id, []).append(metric)
    others = others_running(jobs)
    return {
        key: _step_view(
            tries, logged.get(tries[-1].pk, []), now, counted=counted.get(key, 0), others=others, step_tokens=planned_tokens.get(key[0])
        )
        for key, tries in attempts.items()
    }


def others_running(jobs: Sequence[Job]) -> dict[str, int]:
    """queue -> how many other jobs run there now; asked only where one of these jobs waits for a worker.

    A job that was taken up between the two questions to the database is none of the others.
    """
    waiting = [job.pk for job in jobs if job.state == JobState.QUEUED]
    return querysets.running_by_queue(beside=waiting) if waiting else {}


def _step_view(
    tries: Sequence[Job],
    logged: Sequence[Metric] | Sequence[LoggedStep],
    now: datetime,
    *,
    counted: int,
    others: Mapping[str, int],
    step_tokens: float | None = None,
) -> StepView:
    """A step by its attempts, and by what the last of them logged where it is a tuning."""
    job = tries[-1]
    before, done, total = job.items_before, job.items_done, job.items_total
    if total and job.state != JobState.FINISHED:
        done = min(max(done, counted), total)
    if logged:
        done, total = max(done, logged[-1].step), logged[-1].steps
        before = logged[0].step  # the steps before were another attempt's, or came with what is loaded and compiled only once
    unheard = unheard_for(job, now)
    per_s = None if unheard else _tuning_rate(job, logged, step_tokens) or _rate(job, done - before, now)
    return StepView(
        name=job.step,
        unit=UNITS.get(Step(job.step), "responses"),
        state=job.state,
        job=job,
        attempts=len(tries),
        done=done,
        total=total,
        per_s=per_s,
        left=timedelta(seconds=(total - done) / per_s) if per_s and total > done else None,
        took=sum((_length(attempt) for attempt in tries), timedelta()),
        unheard=unheard,
        others=others.get(job.queue, 0) if job.state == JobState.QUEUED else 0,
    )


def _length(job: Job) -> timedelta:
    return job.ended_at - job.started_at if job.started_at and job.ended_at else timedelta()


def _rate(job: Job, done: int, now: datetime) -> float | None:
    """Items a second of a running job, or None where it has done none yet."""
    if job.state != JobState.RUNNING or job.started_at is None or done <= 0:
        return None
    return done / max((now - job.started_at).total_seconds(), 0.001)


def _tuning_rate(job: Job, logged: Sequence[Metric] | Sequence[LoggedStep], step_tokens: float | None) -> float | None:
    """Steps a second of a running tuning by the speed it logs, which leaves out its start; None where it logs none."""
    speeds = [metric.tokens_per_s for metric in logged[-RECENT_STEPS:] if metric.tokens_per_s]
    if job.state != JobState.RUNNING or not speeds or not step_tokens:
        return None
    return harmonic_mean(speeds) / step_tokens


def unheard_for(job: Job | Errand, now: datetime) -> timedelta | None:
    """How long a running job or errand has missed its heartbeats, once that are more than two: its worker may be dead."""
    if job.state != JobState.RUNNING or job.lease_expires_at is None:
        return None
    silent = now - (job.lease_expires_at - timedelta(seconds=settings.LIONWEB_LEASE_S))
    return silent if silent > timedelta(seconds=2 * settings.LIONWEB_HEARTBEAT_S) else None


def step_of(job: Job, *, logged: Sequence[Metric], others: Mapping[str, int]) -> StepView:
    """One live job as a step, for lists over many runs.

    logged: the last steps of a tuning, from `querysets.last_steps`; others: queue -> how many jobs run there.
    """
    imitation = getattr(logged[-1].iteration, "imitation", None) if logged else None
    return _step_view([job], logged, timezone.now(), counted=0, others=others, step_tokens=tokens_per_step(imitation))


def step_words(step: str, *, use_saved: bool = False) -> str:
    """A step as a person would call it. use_saved: a tuning that only takes its last save as the checkpoint."""
    if use_saved:
        return "taking the last save"
    return "checking the student" if step == Step.PREFLIGHT else step.replace("_", " ")


def _waiting(step: Step) -> StepView:
    unit = UNITS.get(step, "responses")
    return StepView(name=step, unit=unit, state=StageState.WAITING, job=None, attempts=0, done=0, total=0, per_s=None, left=None)


def _stage_view(name: Stage, steps: Sequence[StepView]) -> StageView:
    return StageView(name=name, state=stage_state([step.state for step in steps]), steps=steps)


def stage_state(states: Sequence[str]) -> str:
    """The state of a stage from those of its steps, in their order: what a person should know first."""
    for worst in (JobState.RUNNING, JobState.FAILED, JobState.CRASHED, JobState.STOPPED, JobState.QUEUED):
        if worst in states:
            return StageState.FAILED if worst == JobState.CRASHED else StageState(worst)
    if all(state == JobState.FINISHED for state in states):
        return StageState.FINISHED
    return StageState.RUNNING if JobState.FINISHED in states else StageState.WAITING


assert set(STAGE_ORDER) == set(STEPS)
