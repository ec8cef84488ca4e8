"""The questions asked of the tables. `move` is the one conditional UPDATE by which a job changes its state."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib.postgres.search import SearchQuery
from django.db import connection
from django.db.models import (
    Avg,
    Case,
    CharField,
    Count,
    Exists,
    F,
    FilteredRelation,
    IntegerField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
    When,
    Window,
)
from django.db.models.functions import Coalesce, Greatest, RowNumber
from django.utils import timezone

from experiments.models import BenchmarkScore, Candidate, Instruction, Iteration, Job, Metric, Response, Role, Run, Verdict
from experiments.states import LIVE, MOVES, JobState, RunState
from trainer.records import Fate, Label

FAILURES_SHOWN = timedelta(days=7)
"""A failure that nobody took up for so long is told of by its run's page alone."""


def move(job_id: int, to: str, *, only_if: Q | None = None, **values: Any) -> bool:
    """Move a job to a state, if MOVES allows it from where it is now and `only_if` still holds.

    True where this call moved it. Two callers can never both get True.
    """
    sources = [source for source, targets in MOVES.items() if to in targets]
    jobs = Job.objects.filter(only_if or Q(), pk=job_id, state__in=sources)
    return jobs.update(state=to, **values) == 1


def hold_back(run: Run, step: str) -> None:
    """Keep a run's queued jobs of a step from being claimed until the transaction ends: what is changed in it is there when they begin."""
    list(Job.objects.select_for_update().filter(stage__iteration__run=run, step=step, state=JobState.QUEUED).order_by("pk").values("pk"))


def _jobs_of_run() -> QuerySet[Job]:
    return Job.objects.filter(stage__iteration__run=OuterRef("pk"))


def _later_attempts() -> QuerySet[Job]:
    """Of a job's step."""
    return Job.objects.filter(stage=OuterRef("stage"), step=OuterRef("step"), pk__gt=OuterRef("pk"))


def latest_jobs() -> QuerySet[Job]:
    """The latest job of each step."""
    return Job.objects.order_by("stage_id", "step", "-id").distinct("stage_id", "step")


def runs_with_state() -> QuerySet[Run]:
    """Runs annotated with `state` and `finished_steps`, derived from their jobs."""
    jobs = _jobs_of_run()
    unresolved = jobs.filter(state__in=[JobState.FAILED, JobState.CRASHED]).filter(~Exists(_later_attempts()))
    finished = jobs.filter(state=JobState.FINISHED).order_by().values("stage__iteration__run").annotate(n=Count("pk")).values("n")
    stopping = Q(stop_requested_at__isnull=False)
    live = Exists(jobs.filter(state__in=sorted(LIVE)))
    return Run.objects.annotate(finished_steps=Coalesce(Subquery(finished, output_field=IntegerField()), 0)).annotate(
        state=Case(
            When(stopping & live, then=Value(RunState.STOPPING)),
            When(Exists(jobs.filter(state=JobState.RUNNING)), then=Value(RunState.RUNNING)),
            When(live & Exists(jobs.filter(started_at__isnull=False)), then=Value(RunState.RUNNING)),
            When(live, then=Value(RunState.QUEUED)),
            When(finished_steps=F("steps"), then=Value(RunState.FINISHED)),
            When(Exists(unresolved), then=Value(RunState.FAILED)),
            default=Value(RunState.STOPPED),
            output_field=CharField(),
        )
    )


def train_pool(run: Run, iteration: int, *, accumulate: bool) -> QuerySet[Instruction]:
    """What the student is tuned on in an iteration, in order."""
    made = {"iteration__number__lte": iteration} if accumulate else {"iteration__number": iteration}
    return run.instructions.filter(**made).select_related("iteration", "parent").order_by("position")


def cache_pool(run: Run, iteration: int) -> QuerySet[Instruction]:
    """What the student is judged on in an iteration: everything made before it, in order."""
    return run.instructions.filter(iteration__number__lt=iteration).select_related("iteration", "parent").order_by("position")


def tau_of(run: Run, iteration: int, *, default: float) -> float:
    """The threshold of an iteration: the last one that a person set for it or an earlier one, else the config's."""
    last = run.thresholds.filter(iteration__lte=iteration).order_by("-iteration").values_list("tau", flat=True).first()
    return default if last is None else last


def iterations_with_counts(run: Run) -> QuerySet[Iteration]:
    """A run's iterations with what each page shows of them; judged = hard + easy + quarantined, always."""

    def count(rows: QuerySet[Any]) -> Coalesce:
        per_iteration = rows.filter(iteration=OuterRef("pk")).order_by().values("iteration").annotate(n=Count("pk")).values("n")
        return Coalesce(Subquery(per_iteration, output_field=IntegerField()), 0)

    candidates = Candidate.objects.all()
    return run.iterations.annotate(
        judged=count(Verdict.objects.all()),
        hard=count(Verdict.objects.filter(label=Label.HARD)),
        easy=count(Verdict.objects.filter(label=Label.EASY)),
        quarantined=count(Verdict.objects.filter(label=Label.QUARANTINED)),
        inconsistent=count(Verdict.objects.filter(inconsistent=True)),
        made=count(Instruction.objects.all()),
        candidates_asked=count(candidates),
        accepted=count(candidates.filter(fate=Fate.ACCEPTED)),
        new_hard=count(candidates.filter(fate=Fate.ACCEPTED, origin="hard")),
        new_easy=count(candidates.filter(fate=Fate.ACCEPTED, origin="easy")),
    ).order_by("number")


def rejected_by_fate(run: Run) -> dict[int, dict[str, int]]:
    """iteration number -> fate -> number of candidates rejected for it."""
    rows = Candidate.objects.filter(iteration__run=run).exclude(fate=Fate.ACCEPTED)
    counted = rows.order_by().values_list("iteration__number", "fate").annotate(n=Count("pk"))
    result: dict[int, dict[str, int]] = {}
    for number, fate, n in counted:
        result.setdefault(number, {})[fate] = n
    return result


def last_steps(jobs: Iterable[int], *, most: int) -> QuerySet[Metric]:
    """The last logged steps of each of these tunings (job ids), oldest first, with what their iterations' preflights found."""
    newest_first = Window(RowNumber(), partition_by=[F("job"), F("iteration")], order_by=F("step").desc())
    rows = Metric.objects.filter(job__in=list(jobs)).annotate(place=newest_first).filter(place__lte=most)
    return rows.select_related("iteration__imitation").defer("iteration__imitation__first_batch").order_by("job", "step")


def macro_scores(runs: Iterable[Run]) -> QuerySet[BenchmarkScore]:
    """The macro averages of runs, in the order of their iterations."""
    return (
        BenchmarkScore.objects.filter(iteration__run__in=runs, task="")
        .select_related("iteration")
        .order_by("benchmark", "iteration__number")
    )


def items_done(step: str, iteration: Iteration) -> int:
    """How many items of a step are done, counted from the rows."""
    counts: dict[str, QuerySet[Any]] = {
        "teacher_responses": Response.objects.filter(iteration=iteration, role=Role.TEACHER),
        "student_responses": Response.objects.filter(iteration=iteration, role=Role.STUDENT),
        "judgements": Verdict.objects.filter(iteration=iteration),
        "candidates": Candidate.objects.filter(iteration=iteration, fate=Fate.ACCEPTED),
        "benchmarks": iteration.answers.all(),
    }
    return counts[step].count() if step in counts else 0


def live_jobs() -> QuerySet[Job]:
    """Queued and running jobs of all runs, the running ones first, with their runs."""
    jobs = Job.objects.filter(state__in=sorted(LIVE)).select_related("stage__iteration__run__experiment", "stage__iteration__run__owner")
    return jobs.order_by(F("started_at").asc(nulls_last=True), "id")


def running_by_queue(*, beside: Iterable[int]) -> dict[str, int]:
    """queue -> how many of its jobs run now. beside: ids of jobs that do not count, since they were just seen to wait."""
    rows = Job.objects.filter(state=JobState.RUNNING).exclude(pk__in=list(beside)).order_by().values_list("queue")
    return dict(rows.annotate(n=Count("pk")))


def jobs_with_done() -> QuerySet[Any]:
    """Jobs annotated with `done`, the items that were done at their end.

    A worker that was killed wrote down the number of its last heartbeat: what the next attempt at the step found tells more.
    """
    next_attempt = _later_attempts().filter(items_total__gt=0).order_by("pk").values("items_before")[:1]
    return Job.objects.annotate(done=Greatest(F("items_done"), Coalesce(Subquery(next_attempt), 0)))


def jobs_for_somebody() -> QuerySet[Job]:
    """Jobs that wait for a person, newest first: failed, crashed, or stopped at a budget.

    One whose step was tried again waits no more; nor does a failure that nobody took up for FAILURES_SHOWN, nor a spent budget once
    somebody has asked the run to stop.
    """
    run = "stage__iteration__run"
    failed = Q(state__in=[JobState.FAILED, JobState.CRASHED], ended_at__gte=timezone.now() - FAILURES_SHOWN)
    at_budget = Q(state=JobState.STOPPED, over_budget=True, stage__iteration__run__stop_requested_at__isnull=True)
    jobs = Job.objects.filter(failed | at_budget).filter(~Exists(_later_attempts()))
    return jobs.select_related(f"{run}__experiment").order_by("-id")


def verdict_counts(runs: Iterable[Run]) -> dict[int, dict[int, dict[str, int]]]:
    """run id -> iteration number -> label -> number of verdicts, of iterations that have any."""
    places = _places(runs)
    # By the ids of iterations, not by a join: Postgres then reads their part of the index, whatever other runs hold.
    counted = Verdict.objects.filter(iteration__in=list(places)).order_by().values_list("iteration", "label").annotate(n=Count("pk"))
    result: dict[int, dict[int, dict[str, int]]] = {}
    for iteration, label, n in sorted(counted, key=lambda row: places[row[0]]):
        run, number = places[iteration]
        result.setdefault(run, {}).setdefault(number, {})[label] = n
    return result


def _places(runs: Iterable[Run]) -> dict[int, tuple[int, int]]:
    """iteration id -> (run id, iteration number)."""
    rows = Iteration.objects.filter(run__in=runs).values_list("pk", "run", "number")
    return {pk: (run, number) for pk, run, number in rows}


def mean_discrepancies(runs: Iterable[Run]) -> dict[int, dict[int, float]]:
    """run id -> iteration number -> mean discrepancy of the verdicts that have one; the quarantined have none."""
    places = _places(runs)
    rows = Verdict.objects.filter(iteration__in=list(places), discrepancy__isnull=False).order_by()
    averaged = rows.values_list("iteration").annotate(mean=Avg("discrepancy"))
    result: dict[int, dict[int, float]] = {}
    for iteration, mean in sorted(averaged, key=lambda row: places[row[0]]):
        run, number = places[iteration]
        result.setdefault(run, {})[number] = mean
    return result


def instructions_beside_verdicts(run: Run, iteration: Iteration | None) -> QuerySet[Instruction]:
    """A run's instructions, each with the `verdict` of one iteration as joined columns (none where it was not judged there).

    One join on (instruction, iteration), so that a page of a million instructions asks for no verdict it does not show.
    """
    judged = Q(verdicts__iteration=iteration.pk if iteration else None)
    joined = run.instructions.annotate(verdict=FilteredRelation("verdicts", condition=judged))
    return joined.annotate(
        label=F("verdict__label"),
        discrepancy=F("verdict__discrepancy"),
        teacher_score=F("verdict__teacher_score"),
        student_score=F("verdict__student_score"),
        inconsistent=F("verdict__inconsistent"),
        overruled_to=F("verdict__overruled_to"),
    )


def matching(instructions: QuerySet[Instruction], text: str) -> QuerySet[Instruction]:
    """Instructions that hold the words of a web-style query: "exact words", or, -not."""
    return instructions.filter(search=SearchQuery(text, config="simple", search_type="websearch"))


def last_judged_iteration(run: Run) -> Iteration | None:
    """The last iteration that has verdicts."""
    return run.iterations.filter(Exists(Verdict.objects.filter(iteration=OuterRef("pk")))).order_by("-number").first()


def kinds_of(run: Run) -> list[str]:
    """The kinds of a run's instructions, by one look into the index for each kind rather than a walk over all rows."""
    sql = """
        WITH RECURSIVE kinds AS (
            (SELECT kind FROM experiments_instruction WHERE run_id = %(run)s ORDER BY kind LIMIT 1)
            UNION ALL
            SELECT (SELECT kind FROM experiments_instruction WHERE run_id = %(run)s AND kind > kinds.kind ORDER BY kind LIMIT 1)
            FROM kinds WHERE kinds.kind IS NOT NULL
        )
        SELECT kind FROM kinds WHERE kind <> '' LIMIT 200
    """
    with connection.cursor() as cursor:
        cursor.execute(sql, {"run": run.pk})
        return [kind for (kind,) in cursor.fetchall()]


def lineage(instruction: Instruction) -> list[Instruction]:
    """The ancestors of an instruction, the seed first, itself not among them."""
    sql = """
        WITH RECURSIVE ancestors AS (
            SELECT i.*, 1 AS distance FROM experiments_instruction i WHERE i.id = %s
            UNION ALL
            SELECT i.*, distance + 1 FROM experiments_instruction i JOIN ancestors a ON i.id = a.parent_id WHERE distance < 1000
        )
        SELECT id, iteration_id, run_id, key, position, text, input, origin, parent_id, kind FROM ancestors ORDER BY distance DESC
    """
    return list(Instruction.objects.raw(sql, [instruction.parent_id])) if instruction.parent_id else []
