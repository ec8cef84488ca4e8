"""The questions asked of the ledger, the completions and what calls were like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from django.db.models import Case, Count, Exists, F, OuterRef, Q, QuerySet, Sum, Value, When

from experiments.models import Candidate, Completion, Endpoint, Job, LedgerLine, Pace, Run
from experiments.querysets import latest_jobs
from experiments.states import LIVE, JobState
from trainer.config import EndpointConfig
from trainer.endpoint_test import ROLE as TEST
from trainer.plan import Stage
from trainer.records import WHOLE, Fate

LOOP_ORDER = (Stage.DISCRIMINATION, Stage.GENERATION, Stage.IMITATION, Stage.EVALUATION)

SAMPLE = 200
"""So many calls of a role say how long one takes."""


def ledger_of(run: Run) -> QuerySet[LedgerLine]:
    """The lines of a run's ledger in the order of the loop; those from before stages were written down come first."""
    order = Case(*(When(stage=stage, then=Value(place)) for place, stage in enumerate(LOOP_ORDER)), default=Value(0))
    return (
        LedgerLine.objects.filter(run=run)
        .select_related("iteration")
        .annotate(place=order)
        .order_by(F("iteration__number").asc(nulls_first=True), "place", "role", "endpoint")
    )


def completions_by_line(run: Run) -> dict[int, int]:
    """ledger line id -> how many completions say that it paid for them."""
    lines = LedgerLine.objects.filter(run=run).values("pk")
    return dict(Completion.objects.filter(line__in=lines).order_by().values_list("line").annotate(n=Count("pk")))


def completions_of(run: Run, *, line: int | None = None, **chosen: Any) -> QuerySet[Completion]:
    """The completions a run paid for, those of its latest line and of these the latest first.

    chosen: iteration (number), stage, role and endpoint of their ledger line; good: True or False.
    """
    of_lines = {"iteration": "iteration__number", "stage": "stage", "role": "role", "endpoint": "endpoint"}
    lines = LedgerLine.objects.filter(run=run, **{column: chosen[name] for name, column in of_lines.items() if name in chosen})
    if line is not None:
        lines = lines.filter(pk=line)
    rows = Completion.objects.filter(line__in=list(lines.values_list("pk", flat=True)))
    if "good" in chosen:
        whole = Q(finish_reason__in=sorted(WHOLE))
        rows = rows.filter(whole) if chosen["good"] else rows.exclude(whole)
    return rows.select_related("line__iteration").order_by("-line_id", "-created_at", "-key")  # as the index has them


@dataclass(frozen=True)
class RunCost:
    """What a run has cost so far; the unanswered calls at the most they can have cost."""

    calls: int
    nanodollars: int


def costs_of(runs: Iterable[Run]) -> dict[int, RunCost]:
    """run id -> its cost, of runs that have made calls."""
    rows = LedgerLine.objects.filter(run__in=[run.pk for run in runs]).order_by().values_list("run")
    summed = rows.annotate(calls=Sum(F("calls") + F("unanswered")), nanodollars=Sum(F("nanodollars") + F("unanswered_nanodollars")))
    return {run: RunCost(calls, int(nanodollars)) for run, calls, nanodollars in summed}


def calls_by_role(endpoints: Iterable[str], *, run: Run | None = None) -> list[dict[str, Any]]:
    """What each role's calls to each endpoint added up to: all_calls, all_prompt_tokens ..., and with `run` own_calls ... of that run."""
    names = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "saved")
    sums: dict[str, Any] = {f"all_{name}": Sum(name) for name in names}
    if run is not None:
        sums |= {f"own_{name}": Sum(name, filter=Q(run=run), default=0) for name in names}
    rows = LedgerLine.objects.filter(endpoint__in=list(endpoints)).exclude(role="").order_by()
    return [dict(row) for row in rows.values("role", "endpoint").annotate(**sums)]


@dataclass(frozen=True)
class Timing:
    """How a sample of a role's calls went: seconds a call, and how many of them were asks for the same thing again."""

    latency_s: float
    calls: int
    repeats: int


def timings(roles: Mapping[str, str], *, run: Run | None = None) -> dict[str, Timing]:
    """role -> the timing of a sample of its calls to its endpoint, by the run or by all; batched calls tell nothing of it."""
    samples = [_sample(role, endpoint, run) for role, endpoint in roles.items()]
    if not samples:
        return {}
    by_role: dict[str, list[tuple[float, int]]] = {}
    for role, latency_s, sample in samples[0].union(*samples[1:], all=True):
        by_role.setdefault(role, []).append((latency_s, sample or 0))
    return {
        role: Timing(sum(latency for latency, _ in calls) / len(calls), len(calls), sum(sample > 0 for _, sample in calls))
        for role, calls in by_role.items()
    }


def _sample(role: str, endpoint: str, run: Run | None) -> QuerySet[Any, tuple[str, float, int | None]]:
    lines = LedgerLine.objects.filter(role=role, endpoint=endpoint, calls__gt=0, **({"run": run} if run else {}))
    rows = Completion.objects.filter(line__in=lines.order_by("-pk").values("pk")[:10], batch=False)
    told = rows.annotate(of=Value(role)).values_list("of", "latency_s", "request__sample")[:SAMPLE]
    return cast("QuerySet[Any, tuple[str, float, int | None]]", told)


def accepted_candidates(endpoint: str) -> tuple[int, int]:
    """How many candidates a generator on this endpoint made in its latest iterations, and how many became instructions."""
    lines = LedgerLine.objects.filter(role="generator", endpoint=endpoint, iteration__isnull=False).order_by("-pk")
    latest = list(lines.values_list("iteration", flat=True)[:10])
    if not latest:
        return 0, 0
    counted = Candidate.objects.filter(iteration__in=latest).aggregate(n=Count("pk"), kept=Count("pk", filter=Q(fate=Fate.ACCEPTED)))
    return counted["n"], counted["kept"]


def over_budget_jobs() -> QuerySet[Job]:
    """The latest jobs of their steps that stopped at a budget, of runs that nobody asked to stop."""
    latest = latest_jobs().values("pk")
    stopped = Job.objects.filter(pk__in=latest, over_budget=True, state=JobState.STOPPED)
    return stopped.filter(stage__iteration__run__stop_requested_at__isnull=True).select_related("stage__iteration__run")


def paces_of(endpoints: Mapping[str, EndpointConfig]) -> list[tuple[str, Pace]]:
    """The paces of endpoints that have been called, with the names these have here."""
    servers = {name: (config.base_url, config.model, config.key_env) for name, config in endpoints.items()}
    wanted = Q(pk__in=[])
    for base_url, model, key_env in set(servers.values()):
        wanted |= Q(base_url=base_url, model=model, key_env=key_env)
    rows = {(row.base_url, row.model, row.key_env): row for row in Pace.objects.filter(wanted)}
    return [(name, rows[server]) for name, server in sorted(servers.items()) if server in rows]


# Of endpoints and estimates


def endpoints_offered() -> QuerySet[Endpoint]:
    """The endpoints that new runs may use, by name."""
    return Endpoint.objects.filter(archived_at=None).order_by("name")


def estimated_by_line(run: Run) -> dict[int, int]:
    """ledger line id -> how many of its completions have tokens that we counted, since the server told none."""
    lines = LedgerLine.objects.filter(run=run).values("pk")
    rows = Completion.objects.filter(line__in=lines, estimated=True).order_by()
    return dict(rows.values_list("line").annotate(n=Count("*")))


def ledger_with_estimates(run: Run) -> QuerySet[Any]:
    """The lines of `ledger_of`, each with `estimated`: whether the tokens of any of its completions were counted by us."""
    return ledger_of(run).annotate(estimated=Exists(Completion.objects.filter(line=OuterRef("pk"), estimated=True)))


def lines_on(endpoint: str) -> QuerySet[LedgerLine]:
    """The ledger lines of an endpoint, but for one of tests that sent nothing: the ledger need not know the endpoint by that."""
    nothing = Q(run=None, role=TEST, calls=0, unanswered=0, limited=0, failed=0)
    return LedgerLine.objects.filter(endpoint=endpoint).exclude(nothing)


def runs_using(names: Iterable[str]) -> dict[str, int]:
    """endpoint name -> how many runs with a job that is queued or running have it in their config."""
    live = Run.objects.filter(pk__in=Job.objects.filter(state__in=LIVE).values("stage__iteration__run"))
    configs = live.filter(config__endpoints__has_any_keys=list(names)).values_list("config__endpoints", flat=True)
    return dict(Counter(name for endpoints in configs for name in endpoints))
