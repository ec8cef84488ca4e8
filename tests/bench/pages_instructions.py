"""The list of a run's instructions, a million of them judged twice, under any filter and search, as a browser asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from tests.bench.place import database, web_server
from tests.bench.report import Bar, Figure, quantile, say

if TYPE_CHECKING:
    from django.test import Client

    from experiments.models import Run

ROWS = 1_000_000
ROUNDS = 5

FACETS: dict[str, list[str]] = {
    "q": ["", "river", "river mountain", '"item 31337"', "common", "-common river", "nowhere"],
    "verdict": ["", "hard", "quarantined"],
    "iteration": ["", "1"],
    "made": ["", "0", "2"],
    "origin": ["", "easy"],
    "kind": ["", "kind-3"],
    "inconsistent": ["", "on"],
    "sort": ["", "-d", "d"],
    "page": ["", "400"],
}
"""The values tried of each filter: `common` is in every text, `river` in one of 20, `river mountain` in one of 1,000."""


def measure() -> Iterator[Figure]:
    with database() as data:
        client, run = make_rows()
        asked = list(queries())
        times: dict[str, list[float]] = {query: [] for query in asked}
        with web_server(data, client.cookies["sessionid"].value) as web:
            for number in range(ROUNDS):
                say(f"round {number + 1} of {ROUNDS} over {len(asked)} queries")
                for query in asked:
                    times[query].append(web.seconds(f"/runs/{run.pk}/instructions?{query}"))
    middle = {query: quantile(values, 0.5) for query, values in times.items()}
    for query, value in sorted(middle.items(), key=lambda item: -item[1])[:15]:
        say(f"{1000 * value:6.0f} ms  ?{query}")
    over = sum(value > 0.2 for value in middle.values())
    say(f"{over} of {len(asked)} queries take longer than 200 ms in the median of their {ROUNDS} times")
    everything = [value for values in times.values() for value in values]
    yield Figure(name="pages_instructions", value=1000 * quantile(everything, 0.95), unit="ms p95", bar=Bar(at_most=200))
    yield Figure(name="pages_instructions_slowest", value=1000 * max(middle.values()), unit="ms", bar=Bar(at_most=200))


def queries() -> Iterator[str]:
    """Each value alone, then each two together."""
    tried = [(name, value) for name, values in FACETS.items() for value in values if value]
    yield ""
    for choice in itertools.chain(itertools.combinations(tried, 1), itertools.combinations(tried, 2)):
        if len({name for name, _ in choice}) == len(choice):
            yield urlencode(dict(choice))


def make_rows() -> tuple[Client, Run]:
    """A run of three iterations: half of the instructions are seeds, the others made in 1 and 2; 1 and 2 judged them."""
    from django.db import connection
    from django.test import Client

    from experiments.management.commands.sign_in_link import ensure_user
    from experiments.models import Iteration
    from tests import make

    say(f"making {ROWS:,} instructions")
    owner = ensure_user("member", role="member")
    run = make.make_run(owner, seeds=1)
    run.instructions.all().delete()
    zero = run.iterations.get(number=0)
    one, two = (Iteration.objects.create(run=run, number=number) for number in (1, 2))
    ids = {"run": run.pk, "zero": zero.pk, "one": one.pk, "two": two.pk}
    with connection.cursor() as cursor:
        cursor.execute(SEEDS, {**ids, "rows": ROWS})
        cursor.execute(CHILDREN, {**ids, "rows": ROWS})
        say("judging them")
        cursor.execute(VERDICTS, ids)
        cursor.execute("VACUUM ANALYZE")
    client = Client()
    client.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    return client, run


TEXT = """
    'common item ' || n || ' words' || n %% 50000 || CASE WHEN n %% 20 = 0 THEN ' river' ELSE '' END
    || CASE WHEN n %% 50 = 0 THEN ' mountain' ELSE '' END || ' of some length as instructions have it'
"""
SEEDS = f"""
    INSERT INTO experiments_instruction (run_id, iteration_id, key, position, text, input, origin, kind)
    SELECT %(run)s, %(zero)s, 'seed-' || n, n, {TEXT}, '', 'seed', 'kind-' || n %% 20
    FROM generate_series(0, %(rows)s / 2 - 1) n
"""
CHILDREN = f"""
    INSERT INTO experiments_instruction (run_id, iteration_id, key, position, text, input, origin, kind, parent_id)
    SELECT %(run)s, CASE WHEN n < %(rows)s * 3 / 4 THEN %(one)s ELSE %(two)s END, 'new-' || n, n, {TEXT}, '',
           CASE WHEN n %% 2 = 0 THEN 'hard' ELSE 'easy' END, 'kind-' || n %% 20, parent.id
    FROM generate_series(%(rows)s / 2, %(rows)s - 1) n
    JOIN experiments_instruction parent ON parent.run_id = %(run)s AND parent.position = n - %(rows)s / 2
"""
VERDICTS = """
    INSERT INTO experiments_verdict (instruction_id, iteration_id, label, teacher_score, student_score, discrepancy, inconsistent, reason,
                                     created_at)
    SELECT i.id, t.id, label, CASE WHEN label <> 'quarantined' THEN 10 END, CASE WHEN label <> 'quarantined' THEN 10 - d END,
           CASE WHEN label <> 'quarantined' THEN d END, i.position %% 7 = 0, CASE WHEN label = 'quarantined' THEN 'unreadable' ELSE '' END,
           now()
    FROM experiments_instruction i CROSS JOIN experiments_iteration t
    CROSS JOIN LATERAL (SELECT (i.position::bigint * 7919 + t.number) %% 900 / 100.0 AS d) drawn
    CROSS JOIN LATERAL (SELECT CASE WHEN i.position %% 100 = 99 THEN 'quarantined' WHEN d >= 1 THEN 'hard' ELSE 'easy' END AS label) judged
    WHERE i.run_id = %(run)s AND t.id IN (%(one)s, %(two)s)
"""
