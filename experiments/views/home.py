"""Home: what runs now, what waits for somebody, and the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.db.models import Count, Max, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from experiments import querysets
from experiments.board import StepView, step_of
from experiments.models import Experiment, Iteration, Job, Metric, Run
from experiments.views.paging import page_of
from trainer.plan import Step
from trainer.records import Label

RECENT_RUNS = 20
MOST_SHOWN = 10


@dataclass(frozen=True)
class RunningNow:
    job: Job
    step: StepView
    iterations: int


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    context = {
        **_now(),
        "failures": querysets.unresolved_jobs()[:MOST_SHOWN],
        "quarantined": _quarantined(),
        "experiments": page_of(request, _experiments()),
    }
    return render(request, "home.html", context)


@require_GET
def home_live(request: HttpRequest) -> HttpResponse:
    """What runs now, for the page to refresh."""
    return render(request, "_running_now.html", _now())


def _now() -> dict[str, object]:
    jobs = list(querysets.live_jobs()[: MOST_SHOWN * 2])
    tuned = _last_metrics(jobs)
    running = [RunningNow(job, step_of(job, tuned=tuned.get(job.pk)), _iterations(job)) for job in jobs]
    return {"running": running}


def _iterations(job: Job) -> int:
    return int(job.stage.iteration.run.config["loop"]["iterations"])


def _last_metrics(jobs: Sequence[Job]) -> dict[int, Metric]:
    """job id -> its last logged step: how far a tuning is."""
    tunings = [job.pk for job in jobs if job.step == Step.TUNING]
    rows = Metric.objects.filter(job__in=tunings).order_by("job_id", "-step").distinct("job_id")
    return {metric.job_id: metric for metric in rows} if tunings else {}


def _quarantined() -> list[tuple[Run, list[Any]]]:
    """Recent runs with the iterations that quarantined something, newest first."""
    recent = Run.objects.order_by("-id").values("pk")[:RECENT_RUNS]
    rows = Iteration.objects.filter(run__in=recent, verdicts__label=Label.QUARANTINED).select_related("run")
    counted = rows.annotate(n=Count("verdicts")).order_by("-run", "number")
    return [(run, list(iterations)) for run, iterations in groupby(counted, key=lambda iteration: iteration.run)][:MOST_SHOWN]


def _experiments() -> QuerySet[Any]:
    counted = Experiment.objects.select_related("owner").annotate(n_runs=Count("runs"), last_run=Max("runs__created_at"))
    return counted.order_by("-created_at", "-id")
