"""Forecasts: what the tables know of a run, or of one to be launched, for `trainer.forecast` to start from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from django.db.models import Avg, Func, IntegerField
from django.db.models.functions import Coalesce
from django.utils import timezone

from experiments.models import Completion, Job, LedgerLine, Run, SeedInstruction, SeedPool
from experiments.querysets import items_done
from experiments.querysets_calls import Timing, accepted_candidates, calls_by_role, paces_of, timings
from experiments.services.endpoints import live_endpoints
from experiments.states import JobState
from trainer.config import EndpointConfig, RunConfig, endpoint_of
from trainer.demo.pool import demo_seed_pool
from trainer.forecast import Forecast, forecast
from trainer.forecast_basis import LEAST_SEEN, Known, Place, Seeds, Seen
from trainer.pacing import Pace
from trainer.plan import ROLE_OF, STEP_OF, Step
from trainer.prices import likely_tokens
from trainer.prompts import teacher_messages
from trainer.records import Instruction
from trainer.wire import completion_key, request_of

MOST_COUNTED = 5_000
SAMPLE = 2_000
"""Up to so many seeds each one's teacher call is looked up in the store; of a larger pool, an even sample."""

FIRST: Place = (0, Step.TEACHER_RESPONSES)


def forecast_launch(config: RunConfig, pool: SeedPool | None) -> Forecast:
    """Of a run that is not launched yet; `pool` is None for the demo's."""
    size, seeds = _seeds(config, pool)
    tokens = sum(likely_tokens([seed.prompt]) - likely_tokens([""]) for seed in seeds) / max(len(seeds), 1)
    stored = _stored(config, seeds) if seeds else 0
    known = Known(
        seen=_seen(config),
        accepted=accepted_candidates(endpoint_of(config, "generator")),
        stored={FIRST: stored / max(len(seeds), 1)},
        paces=_paces(config.endpoints),
        notes=[_stored_sentence(stored, len(seeds), size)],
    )
    return forecast(config, Seeds(size=size, tokens=tokens), known)


def _seeds(config: RunConfig, pool: SeedPool | None) -> tuple[int, list[Instruction]]:
    """The size of a seed pool and its instructions, or an even sample of a large one."""
    if pool is None:
        demo = demo_seed_pool(config.seed)
        return len(demo), list(demo)
    rows = SeedInstruction.objects.filter(pool=pool)
    size = rows.count()
    if size > MOST_COUNTED:
        rows = rows.filter(position__in=[i * size // SAMPLE for i in range(SAMPLE)])
    return size, [Instruction(key="", text=text, input=given) for text, given in rows.values_list("text", "input")]


def _stored(config: RunConfig, seeds: Sequence[Instruction]) -> int:
    """How many seeds have their teacher call in the store."""
    name = endpoint_of(config, "teacher")
    keys = {completion_key(request_of(name, config.endpoints[name], config.teacher, teacher_messages(seed))) for seed in seeds}
    return Completion.objects.filter(pk__in=keys).count()


def _stored_sentence(stored: int, looked_up: int, size: int) -> str:
    if looked_up == size:
        return f"{stored:,} of the {size:,} teacher calls on the seeds are in the store already: counted."
    share = stored / max(looked_up, 1)
    return (
        f"About {round(share * size):,} of the {size:,} teacher calls on the seeds are in the store already: "
        f"{stored:,} of a sample of {looked_up:,}."
    )


def forecast_rest(run: Run, config: RunConfig, *, jobs: Sequence[Job], rows: Sequence[Any], lines: Sequence[LedgerLine]) -> Forecast:
    """Of what a run still has to do. rows: its iterations with counts; jobs and ledger lines: all of it, in order."""
    config = replace(config, endpoints=live_endpoints(config))
    made = {row.number: row.made for row in rows}
    asked, kept = sum(row.candidates_asked for row in rows), sum(row.accepted for row in rows)
    over = frozenset(_place(job) for job in jobs if job.state == JobState.FINISHED)
    progress, seen = _progress(jobs), _seen(config, run)
    known = Known(
        seen=seen,
        accepted=(asked, kept) if asked >= LEAST_SEEN else accepted_candidates(endpoint_of(config, "generator")),
        stored=_answered_from_store(lines),
        same=_same(rows, lines, over, asks=seen["referee"].asks if "referee" in seen else 1.0),
        left={place: left for place, (left, _) in progress.items()},
        per_s={place: per_s for place, (_, per_s) in progress.items() if per_s},
        over=over,
        made=made,
        paces=_paces(config.endpoints),
    )
    return forecast(config, Seeds(size=made.get(0, 0), tokens=_mean_tokens(run)), known)


def _place(job: Job) -> Place:
    return job.stage.iteration.number, Step(job.step)


def _progress(jobs: Iterable[Job]) -> dict[Place, tuple[int, float]]:
    """Of each step that has begun and is not over: items still to do, and items a second while it runs, else 0.

    Both as the page says them of the step: by the last of its jobs that told, and by what its rows tell already.
    """
    latest = {_place(job): job for job in jobs if job.items_total and Step(job.step) in ROLE_OF}
    now = timezone.now()
    progress = {}
    for place, job in latest.items():
        if job.state == JobState.FINISHED:
            continue
        done = min(job.items_total, max(job.items_done, items_done(job.step, job.stage.iteration)))
        went_s = (now - job.started_at).total_seconds() if job.state == JobState.RUNNING and job.started_at else 0.0
        per_s = max(0, done - job.items_before) / went_s if went_s else 0.0
        progress[place] = job.items_total - done, per_s
    return progress


def _answered_from_store(lines: Iterable[LedgerLine]) -> dict[Place, float]:
    """The share of asks that the store answered, of steps that have asked enough to tell."""
    return {
        (line.iteration.number, STEP_OF[line.role]): line.saved / (line.saved + line.calls)
        for line in lines
        if line.iteration and line.role in STEP_OF and line.saved + line.calls >= LEAST_SEEN
    }


def _same(rows: Iterable[Any], lines: Iterable[LedgerLine], over: Set[Place], *, asks: float) -> dict[int, float]:
    """By iteration whose judgements are over: the share of what was judged that took one call instead of two.

    By how much was asked for; asks: how often for each judgement, with those that could not be read.
    """
    asked: dict[int, int] = defaultdict(int)
    for line in lines:
        if line.iteration and line.role == "referee":
            asked[line.iteration.number] += line.calls + line.saved
    return {
        row.number: min(1.0, max(0.0, 2 - asked[row.number] / asks / row.judged))
        for row in rows
        if row.judged >= LEAST_SEEN and asked[row.number] and (row.number, Step.JUDGEMENTS) in over
    }


def _mean_tokens(run: Run) -> float:
    """Of a run's seeds, by the first of them: four bytes a token, as `trainer.prices` counts."""
    first = run.instructions.filter(position__lt=SAMPLE)
    lengths = {name: Avg(Func(name, function="octet_length", output_field=IntegerField())) for name in ("text", "input")}
    found = first.aggregate(**{name: Coalesce(length, 0.0) for name, length in lengths.items()})
    return float(found["text"] + found["input"]) / 4


# What calls were like


def _paces(endpoints: Mapping[str, EndpointConfig]) -> dict[str, Pace]:
    return {name: Pace.from_dict(row.state) for name, row in paces_of(endpoints)}


def _seen(config: RunConfig, run: Run | None = None) -> dict[str, Seen]:
    """role -> its calls to its endpoint on average: of this run where it has made enough, else of all runs."""
    roles = {role: endpoint_of(config, role) for role in ROLE_OF.values()}
    rows = {row["role"]: row for row in calls_by_role(set(roles.values()), run=run) if roles.get(row["role"]) == row["endpoint"]}
    own = {role for role, row in rows.items() if row.get("own_calls", 0) >= LEAST_SEEN}
    others = {role for role, row in rows.items() if row["all_calls"] >= LEAST_SEEN} - own
    timed = timings({role: roles[role] for role in sorted(own)}, run=run) | timings({role: roles[role] for role in sorted(others)})
    return {role: _seen_role(rows[role], "own" if role in own else "all", timed.get(role)) for role in own | others}


def _seen_role(row: dict[str, Any], whose: str, timing: Timing | None) -> Seen:
    calls = row[f"{whose}_calls"]
    return Seen(
        calls=calls,
        input_tokens=row[f"{whose}_prompt_tokens"] / calls,
        output_tokens=row[f"{whose}_completion_tokens"] / calls,
        cached_tokens=row[f"{whose}_cached_tokens"] / calls,
        latency_s=timing.latency_s if timing else None,
        asks=timing.calls / max(timing.calls - timing.repeats, 1) if timing else 1.0,
        where="of this run" if whose == "own" else f"of earlier runs on {row['endpoint']}",
    )
