"""The rows of calls, many at a time: each function is one statement, and tells which rows it was that made, ended or kept them.

Written in SQL because a turn runs them at every breath of a run, and Django's bulk operations do not say which rows they met.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

from django.db import connection

from experiments.models import Completion, Job, PendingCall
from experiments.states import JobState
from trainer.records import Completion as Record

COMPLETION_COLUMNS = tuple(field.name for field in fields(Record))


def keep(rows: Sequence[tuple[Record, int]]) -> set[str]:
    """Store completions, each with the ledger line that pays for it; the keys that were not there yet."""
    columns = ", ".join(COMPLETION_COLUMNS)
    records = [{name: getattr(record, name) for name in COMPLETION_COLUMNS} | {"line_id": line} for record, line in rows]
    return _keys(
        f"INSERT INTO {_table(Completion)} ({columns}, line_id, created_at) SELECT {columns}, line_id, now() "
        f"FROM jsonb_populate_recordset(NULL::{_table(Completion)}, %s::jsonb) ON CONFLICT (key) DO NOTHING RETURNING key",
        [json.dumps(records)],
    )


def end(keys: Sequence[str], *, job: int | None = None, batch: bool = False, of_anyone: bool = False) -> dict[str, int]:
    """Take away calls on their way: key -> ledger line, of those that were there. Who else ends one of them finds it gone.

    Those of another job than `job` stay, and those in a batch unless it is a `batch` that brings their ends: a worker that was given
    up for lost may still bring the end of a call that another makes by now. of_anyone: whoever makes them.
    """
    own = "job_id IS NOT DISTINCT FROM %s AND batch_id IS NULL"
    whose = "TRUE" if of_anyone else f"({own} OR batch_id IS NOT NULL)" if batch else own
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {_table(PendingCall)} WHERE key = ANY(%s) AND {whose} RETURNING key, line_id",
            [list(keys)] if of_anyone else [list(keys), job],
        )
        return dict(cursor.fetchall())


def permit(calls: Sequence[dict[str, Any]], *, pace: int, job: int | None, lease: timedelta) -> set[str]:
    """Make permitted calls rows; the keys that nobody else had. calls: key, line_id, most_nanodollars and request of each."""
    return _keys(
        f"INSERT INTO {_table(PendingCall)} (key, line_id, most_nanodollars, request, pace_id, job_id, expires_at) "
        f"SELECT key, line_id, most_nanodollars, request, %s, %s, now() + %s "
        f"FROM jsonb_populate_recordset(NULL::{_table(PendingCall)}, %s::jsonb) ON CONFLICT (key) DO NOTHING RETURNING key",
        [pace, job, lease, json.dumps(calls)],
    )


def holds(job: Job) -> bool:
    """Whether a job is still its worker's. It stays so until the transaction ends: whoever would end it waits."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT 1 FROM {_table(Job)} WHERE id = %s AND state = %s AND worker = %s FOR SHARE", [job.pk, JobState.RUNNING, job.worker]
        )
        return cursor.fetchone() is not None


def _keys(sql: str, values: list[Any]) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return {key for (key,) in cursor.fetchall()}


def _table(model: type[Completion] | type[PendingCall] | type[Job]) -> str:
    return connection.ops.quote_name(model._meta.db_table)
