"""Where the calls of all workers are permitted, counted and kept: one transaction a turn, under the lock of the endpoint's pace.

In a turn the answers that came are stored, the ledger and the budgets are brought up to date, and as many of the wanted calls are
permitted as pace and budgets have room for. A permitted call is a row (PendingCall) until it is done, so that no other worker makes
it and its cost is held; a row whose job is over is given up, and counted as unanswered: its worker may have sent it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from time import monotonic
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, F, FloatField, Func, Q, QuerySet, Sum
from django.db.models.functions import Now
from django.utils import timezone

from experiments import models
from experiments.models import Budget, Job, LedgerLine, PendingCall
from experiments.services.durable import durably
from experiments.states import JobState
from trainer.budget import Purse, take_from_all
from trainer.calls import Batch, Call, Done, Outcome, Turn
from trainer.config import EndpointConfig, RunConfig
from trainer.pacing import Pace
from trainer.records import Completion
from trainer.wire import call_of

logger = logging.getLogger(__name__)

_CLOCK = Func(template="extract(epoch FROM clock_timestamp())::float8", output_field=FloatField())

BUSY_WAIT_S = 0.1
"""When to ask again for a call that another worker is making, or that waits for room in a budget."""

LIMITS_S = 5.0
"""How old the limits may be that calls are paced by: an admin may change them while a run is under way."""

BUDGETS_S = 1.0
"""How long a first budget may go unnoticed, set while a run without any is under way."""


class PostgresCalls:
    """The calls of one job (or of none: then `lease_s` says after how long a permitted call is lost)."""

    def __init__(self, config: RunConfig, *, job: Job | None = None, lease_s: float = 300.0) -> None:
        self._config = config
        self._job = job
        self._lease = timedelta(seconds=lease_s)
        self._held: set[str] = set()
        self._lines: dict[tuple[str, str], int] = {}
        self._paces: dict[str, int] = {}
        self._limits: dict[str, EndpointConfig] = {}
        self._limits_at = -LIMITS_S
        self._without_budget: dict[str, float] = {}

    def turn(self, endpoint: str, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        turn = durably(lambda: self._turn(endpoint, done, wanted))
        self._held.difference_update(end.call.key for end in done)
        self._held.update(turn.permitted)
        return turn

    def _turn(self, endpoint: str, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        with transaction.atomic():
            row, now = self._locked_pace(endpoint)
            pace, limits = Pace.from_dict(row.state), self._current_limits()[endpoint]
            self._end(endpoint, done)
            pace.settle([end for end in done if not end.call.batch], limits=limits, now=now)
            turn = self._begin(endpoint, row, pace, limits, wanted, now)
            models.Pace.objects.filter(pk=row.pk).update(state=pace.as_dict(), updated_at=Now())
        return turn

    # The pace, shared by all who call the same model at the same address with the same key

    def _locked_pace(self, endpoint: str) -> tuple[models.Pace, float]:
        """The row, locked for this transaction, and the database's time (s since the epoch): workers' own clocks may differ."""
        if endpoint not in self._paces:
            config = self._config.endpoints[endpoint]
            made, _ = models.Pace.objects.get_or_create(base_url=config.base_url, model=config.model, key_env=config.key_env)
            self._paces[endpoint] = made.pk
        locked = models.Pace.objects.select_for_update(no_key=True).annotate(now=_CLOCK)
        row: Any = locked.get(pk=self._paces[endpoint])
        return row, row.now

    def _current_limits(self) -> dict[str, EndpointConfig]:
        """Limits as an admin has them now, where the endpoint is still the one the run froze."""
        if monotonic() - self._limits_at > LIMITS_S:
            self._limits = live_endpoints(self._config)
            self._limits_at = monotonic()
        return self._limits

    # Ends

    def _end(self, endpoint: str, done: Sequence[Done]) -> None:
        """Keep what was answered; count every end once, though a lost connection may bring it twice."""
        if not done:
            return
        keys = [end.call.key for end in done]
        known = set(models.Completion.objects.filter(pk__in=keys).values_list("pk", flat=True))
        pending = dict(PendingCall.objects.filter(pk__in=keys).values_list("pk", "line"))
        PendingCall.objects.filter(pk__in=list(pending)).delete()
        counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        rows = []
        for end in done:
            line = pending.get(end.call.key) or self._line(end.call.role, endpoint)
            if end.completion is not None and end.completion.key not in known:
                known.add(end.completion.key)
                rows.append(_row(end.completion, line))
                _count_paid(counts[line], end.completion)
            elif end.call.key in pending:
                _count_unpaid(counts[line], end)
        models.Completion.objects.bulk_create(rows)
        _add_to_ledger(counts)

    # Beginnings

    def _begin(self, endpoint: str, row: models.Pace, pace: Pace, limits: EndpointConfig, wanted: Sequence[Call], now: float) -> Turn:
        found = self._found(endpoint, wanted)
        missing = [call for call in wanted if call.key not in found]
        busy = self._made_elsewhere([call.key for call in missing])
        free = [call for call in missing if call.key not in busy]
        purses = self._purses(endpoint) if free and self._has_budgets(endpoint) else []
        affordable = []
        for call in free:
            if not take_from_all(purses, call):
                break
            affordable.append(call)
        refused = ""
        if len(affordable) < len(free):
            refused = next((text for purse in purses if (text := purse.refusal(free[len(affordable)]))), "")
        in_flight = PendingCall.objects.filter(pace=row, batch=None).count()
        paced = [call for call in affordable if not call.batch]
        admission = pace.admit(paced, limits=limits, in_flight=in_flight, now=now)
        permitted = self._hold(endpoint, row, [*paced[: admission.count], *(call for call in affordable if call.batch)])
        waits_for_others = bool(busy) or len(affordable) < len(free)
        return Turn(
            found=found,
            permitted=permitted,
            wait_s=min(admission.wait_s, BUSY_WAIT_S) if waits_for_others else admission.wait_s,
            refused=refused,
            pause=admission.pause,
        )

    def _found(self, endpoint: str, wanted: Sequence[Call]) -> dict[str, Completion]:
        roles = {call.key: call.role for call in wanted}
        rows = models.Completion.objects.in_bulk(list(roles)) if roles else {}
        saved: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for key, row in rows.items():
            line = saved[self._line(roles[key], endpoint)]
            line["saved"] += 1
            line["saved_nanodollars"] += row.nanodollars
        _add_to_ledger(saved)
        return {key: _record(row) for key, row in rows.items()}

    def _made_elsewhere(self, keys: list[str]) -> set[str]:
        """Keys that another worker is calling. Calls of jobs that are over are given up on the way."""
        rows = list(PendingCall.objects.filter(pk__in=keys).select_related("job")) if keys else []
        lost = [row for row in rows if _is_lost(row)]
        give_up(lost)
        ours = {row.key for row in rows if self._job is not None and row.job_id == self._job.pk and row.batch_id is None}
        again = ours - self._held  # permitted by a turn whose answer was lost on its way to us
        return {row.key for row in rows} - {row.key for row in lost} - again

    def _hold(self, endpoint: str, row: models.Pace, calls: Sequence[Call]) -> frozenset[str]:
        """Make permitted calls rows; the keys that are ours now."""
        if not calls:
            return frozenset()
        expires = timezone.now() + self._lease
        rows = [
            PendingCall(
                key=call.key,
                pace=row,
                line_id=self._line(call.role, endpoint),
                job=self._job,
                most_nanodollars=call.most_nanodollars,
                request=dict(call.request) if call.batch else None,
                expires_at=expires,
            )
            for call in calls
        ]
        PendingCall.objects.bulk_create(rows, ignore_conflicts=True)
        # Another key for the same server has a pace of its own: whose row it is decides.
        ours = PendingCall.objects.filter(pk__in=[call.key for call in calls], job=self._job)
        return frozenset(ours.values_list("pk", flat=True))

    def _line(self, role: str, endpoint: str) -> int:
        if (role, endpoint) not in self._lines:
            iteration = self._job.stage.iteration if self._job else None
            line, _ = LedgerLine.objects.get_or_create(
                run=iteration.run if iteration else None,
                iteration=iteration,
                stage=self._job.stage.name if self._job else "",
                role=role,
                endpoint=endpoint,
            )
            self._lines[role, endpoint] = line.pk
        return self._lines[role, endpoint]

    # Budgets

    def _budgets(self, endpoint: str) -> QuerySet[Budget]:
        """The budgets a call counts in: the run's and the endpoint's."""
        of_run = Q(run=self._job.stage.iteration.run_id) if self._job else Q(pk__in=[])
        capped = Q(most_calls__isnull=False) | Q(most_nanodollars__isnull=False)
        return Budget.objects.filter(of_run | Q(endpoint__name=endpoint), capped)

    def _has_budgets(self, endpoint: str) -> bool:
        """Where there was none a moment ago, it is not asked again for another moment."""
        if endpoint not in self._without_budget or monotonic() - self._without_budget[endpoint] > BUDGETS_S:
            if self._budgets(endpoint).exists():
                self._without_budget.pop(endpoint, None)
                return True
            self._without_budget[endpoint] = monotonic()
        return False

    def _purses(self, endpoint: str) -> list[Purse]:
        """The budgets, locked in one order."""
        budgets = self._budgets(endpoint).select_related("run", "endpoint").select_for_update(of=("self",), no_key=True)
        return [_purse(budget) for budget in budgets.order_by("pk")]

    # Batches

    def batches(self, endpoint: str) -> list[Batch]:
        rows = models.Batch.objects.filter(pace=self._pace_id(endpoint), state__in=OPEN_BATCHES)
        keys = {row.pk: frozenset(row.pending_calls.values_list("key", flat=True)) for row in rows}
        return [Batch(id=row.pk, remote_id=row.remote_id, keys=keys[row.pk]) for row in rows]

    def open_batch(self, endpoint: str, batch_id: str, keys: Sequence[str]) -> None:
        with transaction.atomic():
            pending = PendingCall.objects.filter(pk__in=list(keys))
            line = pending.values_list("line", flat=True).first()
            if line is None:
                raise LookupError(f"none of the {len(keys)} calls of batch {batch_id} is permitted")
            models.Batch.objects.create(id=batch_id, pace_id=self._pace_id(endpoint), line_id=line, calls=len(keys))
            pending.update(batch=batch_id, job=None)

    def batch_requests(self, batch_id: str) -> dict[str, Call]:
        rows = PendingCall.objects.filter(batch=batch_id).select_related("line")
        return {row.key: call_of(row.key, row.line.role, row.request or {}, self._config_of(row.request or {}), batch=True) for row in rows}

    def _config_of(self, request: Mapping[str, Any]) -> EndpointConfig:
        """The endpoint of ours that is the request's server and model: another run may have it under another name."""
        configs = self._config.endpoints.values()
        return next(config for config in configs if (config.base_url, config.model) == (request["base_url"], request["model"]))

    def update_batch(self, batch_id: str, *, remote_id: str = "", state: str = "", done: int | None = None, error: str = "") -> None:
        told = {"remote_id": remote_id, "state": state, "done": done, "error": error}
        models.Batch.objects.filter(pk=batch_id).update(**{name: value for name, value in told.items() if value not in ("", None)})

    def poll_batch(self, batch_id: str, *, every_s: float) -> bool:
        due = Q(polled_at__isnull=True) | Q(polled_at__lt=Now() - timedelta(seconds=every_s))
        return models.Batch.objects.filter(due, pk=batch_id, state__in=OPEN_BATCHES).update(polled_at=Now()) == 1

    def close_batch(self, batch_id: str, *, state: str, error: str = "") -> None:
        with transaction.atomic():
            PendingCall.objects.filter(batch=batch_id).delete()
            models.Batch.objects.filter(pk=batch_id).update(state=state, error=error, ended_at=Now())

    def _pace_id(self, endpoint: str) -> int:
        with transaction.atomic():
            return self._locked_pace(endpoint)[0].pk

    def close(self) -> None:
        connection.close()


OPEN_BATCHES = (models.Batch.State.SUBMITTING, models.Batch.State.IN_PROGRESS)

OPERATIONAL = (
    *("price_input", "price_cached", "price_output"),
    *("rpm", "input_tpm", "output_tpm", "max_at_once"),
    *("timeout_s", "connect_timeout_s", "retries"),
)
"""Settings of an endpoint that change no answer: they are taken as they are now, not as the run froze them."""


def live_endpoints(config: RunConfig) -> dict[str, EndpointConfig]:
    """The run's endpoints with today's limits, prices and timeouts, where the row still is the same server and model."""
    rows = {row.name: row for row in models.Endpoint.objects.filter(name__in=list(config.endpoints))}
    live = dict(config.endpoints)
    for name, frozen in config.endpoints.items():
        row = rows.get(name)
        if row is not None and (row.base_url, row.model) == (frozen.base_url, frozen.model):
            live[name] = replace(frozen, **{setting: getattr(row, setting) for setting in OPERATIONAL})
    return live


def give_up(rows: Iterable[PendingCall]) -> None:
    """Calls nobody waits for any more: they may have been sent, and paid, so they count as unanswered at the most they can cost."""
    counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    rows = list(rows)
    if not rows:
        return
    for row in rows:
        counts[row.line_id]["unanswered"] += 1
        counts[row.line_id]["unanswered_nanodollars"] += row.most_nanodollars
    PendingCall.objects.filter(pk__in=[row.key for row in rows]).delete()
    _add_to_ledger(counts)


def give_up_calls_of(job: Job) -> None:
    """What a job that is over had on its way."""
    give_up(PendingCall.objects.filter(job=job))


def _is_lost(row: PendingCall) -> bool:
    if row.batch_id is not None:
        return False
    if row.job is not None:
        return row.job.state != JobState.RUNNING
    return row.expires_at < timezone.now()


def _purse(budget: Budget) -> Purse:
    lines = LedgerLine.objects.filter(run=budget.run) if budget.run else LedgerLine.objects.filter(endpoint=budget.endpoint.name)  # type: ignore[union-attr]
    spent = lines.aggregate(
        calls=Sum(F("calls") + F("unanswered"), default=0), nanodollars=Sum(F("nanodollars") + F("unanswered_nanodollars"), default=0)
    )
    held = PendingCall.objects.filter(line__in=lines).aggregate(calls=Count("pk"), nanodollars=Sum("most_nanodollars", default=0))
    return Purse(
        owner=f"run {budget.run}" if budget.run else f"endpoint {budget.endpoint}",
        most_calls=budget.most_calls,
        most_nanodollars=budget.most_nanodollars,
        spent_calls=spent["calls"],
        spent_nanodollars=int(spent["nanodollars"]),
        held_calls=held["calls"],
        held_nanodollars=int(held["nanodollars"]),
    )


def _count_paid(line: dict[str, int], completion: Completion) -> None:
    line["calls"] += 1
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "nanodollars"):
        line[name] += getattr(completion, name)


def _count_unpaid(line: dict[str, int], end: Done) -> None:
    match end.outcome:
        case Outcome.UNANSWERED:
            line["unanswered"] += 1
            line["unanswered_nanodollars"] += end.call.most_nanodollars
        case Outcome.LIMITED:
            line["limited"] += 1
        case Outcome.FAILED:
            line["failed"] += 1
        case Outcome.ANSWERED | Outcome.REFUSED:
            pass


def _add_to_ledger(counts: dict[int, dict[str, int]]) -> None:
    for line in sorted(counts):  # in one order, so that two turns never wait for each other
        added: dict[str, Any] = {name: F(name) + number for name, number in counts[line].items() if number}
        if added:
            LedgerLine.objects.filter(pk=line).update(**added)


_COLUMNS = tuple(field.name for field in fields(Completion))


def _row(completion: Completion, line: int) -> models.Completion:
    return models.Completion(**{name: getattr(completion, name) for name in _COLUMNS}, line_id=line)


def _record(row: models.Completion) -> Completion:
    return Completion(**{name: getattr(row, name) for name in _COLUMNS})
