"""Where the calls of all workers are permitted, counted and kept: one transaction a turn, under the lock of the endpoint's pace.

In a turn the answers that came are stored, the ledger and the budgets are brought up to date, and as many of the wanted calls are
permitted as pace and budgets have room for. A permitted call is a row (PendingCall) until it is done, so that no other worker makes
it and its cost is held; a row whose job is over is given up, and counted as unanswered: its worker may have sent it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import Any

from django.db import DataError, IntegrityError, connection, transaction
from django.db.models import F, FloatField, Func, Q, Value
from django.db.models.functions import Greatest, Now
from django.utils import timezone

from experiments import models
from experiments.models import Job, LedgerLine, PendingCall
from experiments.services import call_rows
from experiments.services.durable import durable, durably
from experiments.services.endpoints import live_endpoints
from experiments.services.purses import purses_of
from experiments.states import JobState
from trainer.budget import take_from_all
from trainer.calls import Batch, Call, Done, Outcome, Turn
from trainer.config import EndpointConfig, RunConfig
from trainer.pacing import Pace
from trainer.records import Completion
from trainer.wire import call_of

logger = logging.getLogger(__name__)

_CLOCK = Func(template="extract(epoch FROM clock_timestamp())::float8", output_field=FloatField())

BUSY_WAIT_S = 0.1
"""When to ask again for a call that another worker is making, or that waits for room in a budget."""
BATCH_WAIT_S = 5.0
"""When to ask again for calls that are all in somebody's batch."""

LIMITS_S = 5.0
"""How old the limits may be that calls are paced by: an admin may change them while a run is under way."""

PATIENCE_S = 600.0
"""For how long answers are held while the database is away. They are kept even where the job was given to another meanwhile."""


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

    def turn(self, endpoint: str, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        try:
            turn = durably(lambda: self._turn(endpoint, done, wanted), for_s=PATIENCE_S)
        except (DataError, IntegrityError):
            if len(done) > 1:
                self._save_what_can_be_saved(endpoint, done)
            raise
        self._held.difference_update(end.call.key for end in done)
        self._held.update(turn.permitted)
        return turn

    def _save_what_can_be_saved(self, endpoint: str, done: Sequence[Done]) -> None:
        """An answer that the database will not have must not take the others of its turn with it: they are paid."""
        for end in done:
            try:
                durably(lambda end=end: self._turn(endpoint, [end], []), for_s=PATIENCE_S)  # type: ignore[misc]
            except (DataError, IntegrityError) as error:
                logger.error("the end of call %s could not be kept: %s", end.call.key, error)

    def _turn(self, endpoint: str, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        self._pace_id(endpoint)
        for role in {call.role for call in (*wanted, *(end.call for end in done))}:
            self._line(role, endpoint)
        with transaction.atomic():
            # Locks in one order, whoever takes them: job, pace, calls on their way, ledger lines, budgets.
            may_call = bool(wanted) and (self._job is None or call_rows.holds(self._job))
            row, now = self._locked_pace(endpoint)
            pace, limits = Pace.from_dict(row.state), self._current_limits()[endpoint]
            self._end(endpoint, done)
            pace.settle([end for end in done if not end.call.batch], limits=limits, now=now)
            found = self._found(endpoint, wanted)
            missing = [call for call in wanted if call.key not in found] if may_call else []
            turn = self._permit(endpoint, row, pace, limits, missing, now) if missing else Turn(pause=pace.health.words())
            models.Pace.objects.filter(pk=row.pk).update(state=pace.as_dict(), updated_at=Now())
        return replace(turn, found=found, settings=limits)

    # The pace, shared by all who call the same model at the same address with the same key

    def _locked_pace(self, endpoint: str) -> tuple[models.Pace, float]:
        """The row, locked for this transaction, and the database's time (s since the epoch): workers' own clocks may differ."""
        row: Any = models.Pace.objects.select_for_update(no_key=True).annotate(now=_CLOCK).get(pk=self._pace_id(endpoint))
        return row, row.now

    def _pace_id(self, endpoint: str) -> int:
        """Made outside of any turn, as ledger lines are: one that is rolled back must not take it away again."""
        if endpoint not in self._paces:
            config = self._config.endpoints[endpoint]
            made, _ = models.Pace.objects.get_or_create(base_url=config.base_url, model=config.model, key_env=config.key_env)
            self._paces[endpoint] = made.pk
        return self._paces[endpoint]

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
        pending: dict[str, int] = {}
        for batch in {end.call.batch for end in done}:
            keys = [end.call.key for end in done if end.call.batch == batch]
            pending |= call_rows.end(keys, job=self._job.pk if self._job else None, batch=batch)
        lines = [pending.get(end.call.key) or self._line(end.call.role, endpoint) for end in done]
        answers = [(end.completion, line) for end, line in zip(done, lines, strict=True) if end.completion is not None]
        fresh = call_rows.keep(answers) if answers else set()
        counts: Counts = defaultdict(lambda: defaultdict(int))
        for end, line in zip(done, lines, strict=True):
            count_end(counts[line], end, was_pending=end.call.key in pending, was_kept=end.call.key in fresh)
        add_to_ledger(counts)

    # Beginnings

    def _permit(self, endpoint: str, row: models.Pace, pace: Pace, limits: EndpointConfig, wanted: Sequence[Call], now: float) -> Turn:
        """Permit as many of the calls, none of which has an answer yet, as pace and budgets have room for."""
        others, again = self._under_way([call.key for call in wanted])
        free = [call for call in wanted if call.key not in others and call.key not in again]
        affordable, refused = self._affordable(endpoint, free)
        paced = [call for call in affordable if not call.batch]
        in_flight = PendingCall.objects.filter(pace=row, request__isnull=True).count()
        admission = pace.admit(paced, limits=limits, in_flight=in_flight, now=now)
        permitted = self._hold(endpoint, row, [*paced[: admission.count], *(call for call in affordable if call.batch)])
        in_batches = [other for other in others.values() if other.batch_id is not None]
        if len(affordable) < len(free) or len(in_batches) < len(others):
            wait_s = min(admission.wait_s, BUSY_WAIT_S)
        else:
            wait_s = admission.wait_s if free else BATCH_WAIT_S
        return Turn(
            permitted=frozenset(permitted | again),
            wait_s=wait_s,
            refused=refused,
            pause=admission.pause,
            waits_for=_words_of_batches(in_batches),
        )

    def _affordable(self, endpoint: str, calls: Sequence[Call]) -> tuple[list[Call], str]:
        """The first of the calls that every budget has room for, and why there is none for the next, where waiting would not help."""
        purses = purses_of(endpoint, run_id=self._job.stage.iteration.run_id if self._job else None) if calls else []
        for place, call in enumerate(calls):
            if not take_from_all(purses, call):
                return list(calls[:place]), next((text for purse in purses if (text := purse.refusal(call))), "")
        return list(calls), ""

    def _found(self, endpoint: str, wanted: Sequence[Call]) -> dict[str, Completion]:
        roles = {call.key: call.role for call in wanted}
        rows = models.Completion.objects.in_bulk(list(roles)) if roles else {}
        saved: Counts = defaultdict(lambda: defaultdict(int))
        for key, row in rows.items():
            line = saved[self._line(roles[key], endpoint)]
            line["saved"] += 1
            line["saved_nanodollars"] += row.nanodollars
        add_to_ledger(saved)
        return {key: _record(row) for key, row in rows.items()}

    def _under_way(self, keys: list[str]) -> tuple[dict[str, PendingCall], set[str]]:
        """Calls that others are making, by key, and keys that are ours by a turn whose answer was lost on its way to us.

        Calls of jobs that are over are given up on the way.
        """
        rows = {row.key: row for row in PendingCall.objects.filter(pk__in=keys).select_related("job", "batch", "line__run")}
        lost = {key for key, row in rows.items() if _is_lost(row)}
        give_up(rows[key] for key in lost)
        ours = {key for key, row in rows.items() if self._job is not None and row.job_id == self._job.pk and row.batch_id is None}
        again = ours - lost - self._held
        return {key: row for key, row in rows.items() if key not in lost | again}, again

    def _hold(self, endpoint: str, row: models.Pace, calls: Sequence[Call]) -> set[str]:
        """Make permitted calls rows; the keys that are ours now. Another key for the same server has a pace of its own: the first wins."""
        if not calls:
            return set()
        rows = [
            {
                "key": call.key,
                "line_id": self._line(call.role, endpoint),
                "most_nanodollars": call.most_nanodollars,
                "request": call.request if call.batch else None,
            }
            for call in calls
        ]
        return call_rows.permit(rows, pace=row.pk, job=self._job.pk if self._job else None, lease=self._lease)

    def _line(self, role: str, endpoint: str) -> int:
        """The ledger line of a role's calls."""
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

    @durable
    def has_answered(self, endpoint: str) -> bool:
        run = self._job.stage.iteration.run if self._job else None
        return LedgerLine.objects.filter(run=run, endpoint=endpoint, calls__gt=0).exists()

    # Batches

    @durable
    def batches(self, endpoint: str) -> list[Batch]:
        rows = models.Batch.objects.filter(pace=self._pace_id(endpoint), state__in=OPEN_BATCHES)
        keys = {row.pk: frozenset(row.pending_calls.values_list("key", flat=True)) for row in rows}
        return [Batch(id=row.pk, remote_id=row.remote_id, keys=keys[row.pk]) for row in rows]

    @durable
    def open_batch(self, endpoint: str, batch_id: str, keys: Sequence[str]) -> None:
        with transaction.atomic():
            if models.Batch.objects.filter(pk=batch_id).exists():  # by a commit whose news was lost
                return
            pending = PendingCall.objects.filter(pk__in=list(keys), job=self._job)
            line = pending.values_list("line", flat=True).first()
            if line is None:
                raise LookupError(f"none of the {len(keys)} calls of batch {batch_id} is permitted")
            models.Batch.objects.create(id=batch_id, pace_id=self._pace_id(endpoint), line_id=line, calls=len(keys))
            if pending.update(batch=batch_id, job=None) < len(keys):
                raise LookupError(f"some of the {len(keys)} calls of batch {batch_id} are not permitted any more")

    @durable
    def batch_requests(self, batch_id: str) -> dict[str, Call]:
        rows = PendingCall.objects.filter(batch=batch_id).select_related("line")
        return {row.key: self._call_of_batch(row) for row in rows}

    def _call_of_batch(self, row: PendingCall) -> Call:
        """The call as it was permitted: it holds what it could cost then."""
        request = row.request or {}
        call = call_of(row.key, row.line.role, request, self._config_of(request), batch=True)
        return replace(call, most_nanodollars=row.most_nanodollars)

    def _config_of(self, request: Mapping[str, Any]) -> EndpointConfig:
        """The endpoint of ours that is the request's server and model: another run may have it under another name."""
        for config in self._config.endpoints.values():
            if (config.base_url, config.model) == (request["base_url"], request["model"]):
                return config
        raise LookupError(f"no endpoint here is {request.get('model')} at {request.get('base_url')}, to which a call of the batch went")

    @durable
    def update_batch(self, batch_id: str, *, remote_id: str = "", state: str = "", done: int | None = None, error: str = "") -> None:
        told = {"remote_id": remote_id, "state": state, "done": done, "error": error}
        models.Batch.objects.filter(pk=batch_id, state__in=OPEN_BATCHES).update(
            **{name: value for name, value in told.items() if value not in ("", None)}
        )

    @durable
    def poll_batch(self, batch_id: str, *, every_s: float) -> bool:
        due = Q(polled_at__isnull=True) | Q(polled_at__lt=Now() - timedelta(seconds=every_s))
        return models.Batch.objects.filter(due, pk=batch_id, state__in=OPEN_BATCHES).update(polled_at=Now()) == 1

    @durable
    def close_batch(self, batch_id: str, *, state: str, error: str = "", lost: bool = False) -> None:
        with transaction.atomic():
            if lost:
                give_up(PendingCall.objects.filter(batch=batch_id))
            PendingCall.objects.filter(batch=batch_id).delete()
            models.Batch.objects.filter(pk=batch_id).update(state=state, error=error, ended_at=Now())

    def close(self) -> None:
        connection.close()


OPEN_BATCHES = (models.Batch.State.SUBMITTING, models.Batch.State.IN_PROGRESS)


def _words_of_batches(rows: Sequence[PendingCall]) -> str:
    """Whose batch the calls of others are in, for whoever waits for their answers; "" where there are none."""
    batch = next((row.batch for row in rows if row.batch is not None), None)
    if batch is None:
        return ""
    run, since = rows[0].line.run, batch.created_at
    owner = f"of run {run}" if run else "of a run that was deleted"
    waiting = "1 call waits" if len(rows) == 1 else f"{len(rows):,} calls wait"
    return f"{waiting} for batch {batch.remote_id or batch.id} {owner}, handed over at {since:%H:%M} UTC on {since:%d %b}."


def give_up(rows: Iterable[PendingCall]) -> None:
    """Calls nobody waits for any more: they may have been sent, and paid, so they count as unanswered at the most they can cost.

    One that waited for its batch to be opened was not sent.
    """
    by_key = {row.key: row for row in rows}
    if not by_key:
        return
    counts: Counts = defaultdict(lambda: defaultdict(int))
    for key, line in call_rows.end(list(by_key), of_anyone=True).items():
        row = by_key[key]
        if row.request is None or row.batch_id is not None:
            counts[line]["unanswered"] += 1
            counts[line]["unanswered_nanodollars"] += row.most_nanodollars
    add_to_ledger(counts)


def give_up_calls_of(job: Job) -> None:
    """What a job that is over had on its way."""
    give_up(PendingCall.objects.filter(job=job))


def _is_lost(row: PendingCall) -> bool:
    if row.batch_id is not None:
        return False
    if row.job is not None:
        return row.job.state != JobState.RUNNING
    return row.expires_at < timezone.now()


Counts = dict[int, dict[str, int]]
"""Ledger line -> column -> what is added to it."""


def count_end(line: dict[str, int], end: Done, *, was_pending: bool, was_kept: bool) -> None:
    """Count the end of a call on its ledger line.

    was_pending: it was still ours; if not, it was given up and counted as unanswered, or this end was counted before.
    was_kept: its answer was not there yet; if it was, ours was paid for without a place of its own.
    """
    most = end.call.most_nanodollars
    match end.outcome:
        case Outcome.ANSWERED if end.completion and was_kept:
            line["calls"] += 1
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "nanodollars"):
                line[name] += getattr(end.completion, name)
            if not was_pending:
                line["unanswered"] -= 1
                line["unanswered_nanodollars"] -= most
        case _ if not was_pending:
            pass
        case Outcome.ANSWERED if end.completion:
            line["unanswered"] += 1
            line["unanswered_nanodollars"] += end.completion.nanodollars
        case Outcome.UNANSWERED:
            line["unanswered"] += 1
            line["unanswered_nanodollars"] += most
        case Outcome.LIMITED:
            line["limited"] += 1
        case Outcome.FAILED:
            line["failed"] += 1


def add_to_ledger(counts: Counts) -> None:
    """Add to the lines what was counted for each."""
    for line in sorted(counts):  # in one order, so that two turns never wait for each other
        added: dict[str, Any] = {name: Greatest(F(name) + number, Value(0)) for name, number in counts[line].items() if number}
        if added:
            LedgerLine.objects.filter(pk=line).update(**added)


def _record(row: models.Completion) -> Completion:
    return Completion(**{name: getattr(row, name) for name in call_rows.COMPLETION_COLUMNS})
