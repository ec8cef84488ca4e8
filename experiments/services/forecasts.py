"""Forecasts: what the tables know of a run, or of one to be launched, for `trainer.forecast` to start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from django.db.models import Avg, Func, IntegerField
from django.db.models.functions import Coalesce

from experiments.models import Completion, Job, LedgerLine, Run, SeedInstruction, SeedPool
from experiments.querysets_calls import Timing, accepted_candidates, calls_by_role, timings
from experiments.services.calls import live_endpoints
from experiments.states import JobState
from trainer.config import RunConfig, endpoint_of
from trainer.demo.pool import demo_seed_pool
from trainer.forecast import LEAST_SEEN, ROLE_OF, Forecast, Known, Place, Seeds, Seen, forecast
from trainer.plan import Step
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
    known = Known(
        seen=_seen(config, run),
        accepted=(asked, kept) if asked >= LEAST_SEEN else accepted_candidates(endpoint_of(config, "generator")),
        stored=_answered_from_store(lines),
        left=_left(jobs),
        over=frozenset(_place(job) for job in jobs if job.state == JobState.FINISHED),
        made=made,
    )
    return forecast(config, Seeds(size=made.get(0, 0), tokens=_mean_tokens(run)), known)


def _place(job: Job) -> Place:
    return job.stage.iteration.number, Step(job.step)


def _left(jobs: Iterable[Job]) -> dict[Place, int]:
    """Items a step still has to do, by the last of its jobs that told."""
    return {_place(job): max(0, job.items_total - job.items_done) for job in jobs if job.items_total}


STEP_OF = {role: step for step, role in ROLE_OF.items()}


def _answered_from_store(lines: Iterable[LedgerLine]) -> dict[Place, float]:
    """The share of asks that the store answered, of steps that have asked enough to tell."""
    return {
        (line.iteration.number, STEP_OF[line.role]): line.saved / (line.saved + line.calls)
        for line in lines
        if line.iteration and line.role in STEP_OF and line.saved + line.calls >= LEAST_SEEN
    }


def _mean_tokens(run: Run) -> float:
    """Of a run's seeds, by the first of them: four bytes a token, as `trainer.prices` counts."""
    first = run.instructions.filter(position__lt=SAMPLE)
    lengths = {name: Avg(Func(name, function="octet_length", output_field=IntegerField())) for name in ("text", "input")}
    found = first.aggregate(**{name: Coalesce(length, 0.0) for name, length in lengths.items()})
    return float(found["text"] + found["input"]) / 4


# What calls were like


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
