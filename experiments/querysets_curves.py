"""The logged steps of imitations as the run page needs them: thinned by the database where there are more than a chart draws.

A tuning may log tens of thousands of steps, and the page of a live run asks every few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from django.db import connection

MOST_POINTS = 300
"""A line of more points is thinned, and says so."""

SMOOTHED_OVER = 20
"""Logged steps over which the smoothed line forgets; fewer where there are fewer than ten times as many."""

ENDS = 20
"""So many steps at either end of an imitation are read whole: the speed of a tuning is told by its last ones."""


def forgetting(over: int) -> float:
    """What of its weight a logged step keeps at the next one, in a moving average over so many."""
    return max(0.0, 1 - 2 / (over + 1))


class LoggedStep(NamedTuple):
    """One logged step, and what a thinned line needs to know of those left out before it.

    place: of this step among its iteration's, from 0; logs, run_logs: how many steps the iteration and the run logged;
    peak_gib: the most memory that any step of the iteration took.
    NAME_sum, NAME_weight: the values since the last place that `every` divides, each with its weight in a moving average that
    ends here, and the weights alone; None where there is no value.
    """

    iteration_id: int
    job_id: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens_per_s: float | None
    gpu_percent: float | None
    place: int
    logs: int
    run_logs: int
    peak_gib: float | None
    loss_sum: float | None
    loss_weight: float | None
    grad_norm_sum: float | None
    grad_norm_weight: float | None
    tokens_per_s_sum: float | None
    tokens_per_s_weight: float | None


_PARTS = ", ".join(
    f"sum({name} * weight) OVER part, sum(weight) FILTER (WHERE {name} IS NOT NULL) OVER part"
    for name in ("loss", "grad_norm", "tokens_per_s")
)

_CURVES = f"""
    WITH logged AS (
        SELECT DISTINCT ON (iteration_id, step) *
        FROM experiments_metric WHERE iteration_id = ANY(%(iterations)s::bigint[])
        ORDER BY iteration_id, step, job_id DESC
    ),
    placed AS (
        SELECT *,
            row_number() OVER steps - 1 AS place,
            count(*) OVER iteration AS logs,
            count(*) OVER () AS run_logs,
            max(memory_gib) OVER iteration AS peak_gib,
            lag(job_id) OVER steps IS DISTINCT FROM job_id AS begins
        FROM logged
        WINDOW iteration AS (PARTITION BY iteration_id), steps AS (PARTITION BY iteration_id ORDER BY step)
    ),
    thinning AS (
        SELECT *, (logs + %(most)s - 1) / %(most)s AS every, (run_logs + %(most)s - 1) / %(most)s AS run_every FROM placed
    ),
    parts AS (
        SELECT *,
            (place + every - 1) / every AS part,
            power(%(keep)s::float8, least(least((place + every - 1) / every * every, logs - 1) - place, 500)) AS weight
        FROM thinning
    ),
    summed AS (
        SELECT iteration_id, job_id, step, steps, loss, learning_rate, grad_norm, tokens_per_s, gpu_percent,
            place, logs, run_logs, peak_gib, {_PARTS},
            place %% every = 0 OR place %% run_every = 0 OR place < %(ends)s OR place >= logs - %(ends)s OR begins AS needed
        FROM parts WINDOW part AS (PARTITION BY iteration_id, part)
    )
    SELECT * FROM summed WHERE needed ORDER BY array_position(%(iterations)s::bigint[], iteration_id), step
"""


def logged_steps(iterations: Iterable[int]) -> list[LoggedStep]:
    """The logged steps of one run's iterations (ids), the last attempt at each step alone, in that order.

    Where an iteration or the run logged more than MOST_POINTS: those that its lines draw, the first of each job, and both ends.
    """
    with connection.cursor() as cursor:
        cursor.execute(_CURVES, {"iterations": list(iterations), "most": MOST_POINTS, "ends": ENDS, "keep": forgetting(SMOOTHED_OVER)})
        return [LoggedStep(*row[:-1]) for row in cursor.fetchall()]
