"""What calls cost, as pages show it: the ledger with its sums, and a run's costs with what is still to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from django.utils import timezone

from experiments import querysets_calls
from experiments.board import LIVE_RUN, Board
from experiments.budget_form import caps_of
from experiments.models import Budget, Job, LedgerLine
from experiments.querysets_calls import LOOP_ORDER
from experiments.services.budgets import Spent, budgets_in_the_way, spent
from experiments.services.forecasts import forecast_rest
from experiments.states import JobState, RunState
from trainer.forecast import Forecast, Line
from trainer.pacing import Pace

HEADROOM = 1.05
"""A budget is offered with so much more than the forecast needs."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Ledger lines added up."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    nanodollars: int = 0
    unanswered: int = 0
    unanswered_nanodollars: int = 0
    limited: int = 0
    failed: int = 0
    saved: int = 0
    saved_nanodollars: int = 0

    @property
    def counted_calls(self) -> int:
        """What counts in a budget: calls that were paid, or may have been."""
        return self.calls + self.unanswered

    @property
    def counted_nanodollars(self) -> int:
        return self.nanodollars + self.unanswered_nanodollars


def add_up(lines: Iterable[LedgerLine]) -> Sums:
    lines = list(lines)
    return Sums(**{f.name: sum(getattr(line, f.name) for line in lines) for f in fields(Sums)})


@dataclass(frozen=True, kw_only=True)
class LedgerGroup:
    """The lines of one iteration; `number` is None for what was paid before stages were written down."""

    number: int | None
    lines: Sequence[LedgerLine]
    sums: Sums


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A run's ledger.

    completions: how many completions are kept for it, counted from themselves. estimated_lines: line id -> how many of its completions have
    tokens that we counted.
    """

    groups: Sequence[LedgerGroup]
    total: Sums
    completions: int
    differing: Sequence[LedgerLine]
    estimated_lines: Mapping[int, int]

    @property
    def estimated(self) -> int:
        """How many of the calls have tokens that we counted."""
        return sum(self.estimated_lines.values())

    @property
    def adds_up(self) -> bool:
        return not self.differing and self.completions == self.total.calls


def read_ledger(run: Any) -> Ledger:
    """A run's ledger, held against its completions."""
    lines = list(querysets_calls.ledger_of(run))
    kept = querysets_calls.completions_by_line(run)
    groups = [(number, list(of)) for number, of in groupby(lines, key=lambda line: line.iteration.number if line.iteration else None)]
    return Ledger(
        groups=[LedgerGroup(number=number, lines=of, sums=add_up(of)) for number, of in groups],
        total=add_up(lines),
        completions=sum(kept.values()),
        differing=[line for line in lines if kept.get(line.pk, 0) != line.calls],
        estimated_lines=querysets_calls.estimated_by_line(run),
    )


# Costs and what is to come


@dataclass(frozen=True, kw_only=True)
class Meter:
    """One cap of a budget: what is spent of it, and what the forecast adds. Units: calls or nanodollars."""

    spent: int
    rest: int
    most: int

    @property
    def over(self) -> int:
        """By how much the forecast goes over the cap."""
        return max(0, self.spent + self.rest - self.most)

    @property
    def spent_percent(self) -> float:
        return min(100.0, 100 * self.spent / self.most)

    @property
    def rest_percent(self) -> float:
        return min(100.0 - self.spent_percent, 100 * self.rest / self.most)

    @property
    def needed(self) -> int:
        """A cap that the forecast fits in, with some headroom."""
        return max(self.most, round(HEADROOM * (self.spent + self.rest)))


def meters(
    rest: Forecast | None, *, most_calls: int | None, most_nanodollars: int | None, calls: int = 0, nanodollars: int = 0
) -> dict[str, Meter]:
    """A meter for each cap that is set: `dollars`, `calls`. calls, nanodollars: spent so far."""
    found = {}
    if most_nanodollars is not None:
        found["dollars"] = Meter(spent=nanodollars, rest=rest.nanodollars if rest else 0, most=most_nanodollars)
    if most_calls is not None:
        found["calls"] = Meter(spent=calls, rest=rest.calls if rest else 0, most=most_calls)
    return found


def budget_meters(budget: Budget | None, spent: Spent, rest: Forecast | None = None) -> dict[str, Meter]:
    """The meters of a budget; of none, none."""
    return meters(rest, **caps_of(budget), calls=spent.counted_calls, nanodollars=spent.counted_nanodollars)


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """A role in a stage of an iteration: what it cost so far, and what it still needs."""

    iteration: int | None
    stage: str
    role: str
    endpoint: str
    spent: LedgerLine | None
    rest: Line | None


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A job that stopped at budgets, and which they are."""

    job: Job
    budgets: Sequence[Budget]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A run's calls and cost.

    estimated: whether any tokens were counted by us. rest: forecast of what is still to do, None for a finished run. sums: of the ledger's
    lines. unwell: endpoints, each with why.
    """

    spent: Spent
    sums: Sums
    estimated: bool
    rest: Forecast | None
    budget: Budget | None
    rows: Sequence[CostRow]
    stopped: Sequence[Stopped]
    unwell: Sequence[tuple[str, str]]

    @property
    def calls(self) -> int:
        return self.spent.counted_calls + (self.rest.calls if self.rest else 0)

    @property
    def nanodollars(self) -> int:
        return self.spent.counted_nanodollars + (self.rest.nanodollars if self.rest else 0)

    @property
    def any(self) -> bool:
        return bool(self.rows)

    @property
    def meters(self) -> dict[str, Meter]:
        return budget_meters(self.budget, self.spent, self.rest)


def read_costs(board: Board) -> Costs:
    """What the run page says of calls and money, in a number of queries that depends on the state of the run alone."""
    run = board.run
    config = run.run_config()
    lines = list(querysets_calls.ledger_with_estimates(run))
    rows = [iteration.row for iteration in board.iterations if iteration.row]
    over = run.state == RunState.FINISHED
    rest = None if over else forecast_rest(run, config, jobs=board.jobs, rows=rows, lines=lines)
    return Costs(
        spent=spent(run),
        sums=add_up(lines),
        estimated=any(line.estimated for line in lines),
        rest=rest,
        budget=Budget.objects.filter(run=run).first(),
        rows=_rows(lines, rest.lines if rest else ()),
        stopped=[Stopped(job=job, budgets=budgets_in_the_way(job)) for job in _stopped_at_budget(board)],
        unwell=unwell_endpoints(config.endpoints) if run.state in LIVE_RUN else (),
    )


def _stopped_at_budget(board: Board) -> list[Job]:
    """The latest jobs of their steps that wait for a larger budget."""
    if board.run.stop_requested_at is not None:
        return []
    latest = {(job.stage_id, job.step): job for job in board.jobs}
    return [job for job in latest.values() if job.over_budget and job.state == JobState.STOPPED]


def _rows(lines: Sequence[LedgerLine], rest: Sequence[Line]) -> list[CostRow]:
    spent_at = {(line.iteration.number if line.iteration else None, line.stage, line.role, line.endpoint): line for line in lines}
    rest_at: Mapping[Any, Line] = {(line.iteration, line.stage.value, line.role, line.endpoint): line for line in rest}
    places = sorted({*spent_at, *rest_at}, key=_in_order)
    return [
        CostRow(iteration=number, stage=stage, role=role, endpoint=name, spent=spent_at.get(place), rest=rest_at.get(place))
        for place in places
        for number, stage, role, name in [place]
    ]


def _in_order(place: tuple[int | None, str, str, str]) -> tuple[int, int, str, str]:
    number, stage, role, name = place
    return -1 if number is None else number, LOOP_ORDER.index(stage) if stage in LOOP_ORDER else 0, role, name


def unwell_endpoints(endpoints: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The endpoints that something is wrong with, each with what."""
    now = timezone.now().timestamp()
    told = [(name, Pace.from_dict(row.state).words(now)) for name, row in querysets_calls.paces_of(endpoints)]
    return [(name, words) for name, words in told if words]
