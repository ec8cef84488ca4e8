"""Home: what runs now, what waits for somebody, and the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Exists, Max, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from experiments import querysets
from experiments.board import RECENT_STEPS, StepView, others_running, step_of
from experiments.ledger import unwell_endpoints
from experiments.models import Experiment, Iteration, Job, Metric, Run, Verdict
from experiments.views.paging import page_of
from trainer.config import EndpointConfig, endpoint_of
from trainer.errors import ConfigError
from trainer.plan import ROLE_OF, Step
from trainer.records import Label

RECENT_RUNS = 20
MOST_SHOWN = 10


@dataclass(frozen=True)
class RunningNow:
    """A live job. unwell: what is wrong with the endpoint it calls, or ""."""

    job: Job
    step: StepView
    iterations: int
    unwell: str


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    waiting = list(querysets.jobs_for_somebody()[: MOST_SHOWN + 1])
    context = {
        **_now(),
        "waiting": waiting[:MOST_SHOWN],
        "more_waiting": len(waiting) > MOST_SHOWN,
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
    logged = _last_metrics(jobs)
    others, unwell = others_running(jobs), _unwell(jobs)
    running = [
        RunningNow(job, step_of(job, logged=logged.get(job.pk, []), others=others), _iterations(job), unwell.get(str(job.pk), ""))
        for job in jobs
    ]
    return {"running": running}


def _iterations(job: Job) -> int:
    return int(job.stage.iteration.run.config["loop"]["iterations"])


def _last_metrics(jobs: Sequence[Job]) -> dict[int, list[Metric]]:
    """job id -> its last logged steps: how far a tuning is, and how fast."""
    tunings = [job.pk for job in jobs if job.step == Step.TUNING]
    logged: dict[int, list[Metric]] = {}
    for metric in querysets.last_steps(tunings, most=RECENT_STEPS) if tunings else ():
        logged.setdefault(metric.job_id, []).append(metric)
    return logged


def _unwell(jobs: Sequence[Job]) -> dict[str, str]:
    """job id -> what is wrong with the endpoint that the job calls."""
    called = {str(job.pk): endpoint for job in jobs if (endpoint := _endpoint(job))}
    return dict(unwell_endpoints(called))


def _endpoint(job: Job) -> EndpointConfig | None:
    role = ROLE_OF.get(Step(job.step))
    if role is None:
        return None
    try:
        config = job.stage.iteration.run.run_config()
    except ConfigError:  # of another version: its worker will say so
        return None
    return config.endpoints.get(endpoint_of(config, role))


def _quarantined() -> list[Iteration]:
    """The last judged iterations of recent runs, where they quarantined something, newest first.

    An iteration judges all that the ones before it judged, and so asks again for what they had quarantined.
    """
    recent = Run.objects.order_by("-id").values("pk")[:RECENT_RUNS]
    judged = Iteration.objects.filter(Exists(Verdict.objects.filter(iteration=OuterRef("pk"))), run__in=recent)
    last = judged.order_by("run_id", "-number").distinct("run_id").values("pk")
    rows = Iteration.objects.filter(pk__in=last, verdicts__label=Label.QUARANTINED).select_related("run")
    return list(rows.annotate(n=Count("verdicts")).order_by("-run")[:MOST_SHOWN])


def _experiments() -> QuerySet[Any]:
    counted = Experiment.objects.select_related("owner").annotate(n_runs=Count("runs"), last_run=Max("runs__created_at"))
    return counted.order_by("-created_at", "-id")
