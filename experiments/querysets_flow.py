"""The questions asked of the tables by the pool flow and the trajectories: counts by SQL, and the rows behind each count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.db import connection
from django.db.models import Avg, Count, Exists, OuterRef, Q, QuerySet, StdDev

from experiments.models import Benchmark, Candidate, Instruction, Iteration, Response, Role, Run, Verdict
from experiments.querysets_referee import LENGTH_STATES, by_referee, in_length_state
from experiments.querysets_reviews import REVIEW_STATES, in_review_state
from trainer.benchmarks import get_benchmark
from trainer.records import Label, Origin

# The flow


class Group(NamedTuple):
    """Instructions of a cache pool that came equally far in an iteration, and how many they are.

    answered: teacher and student both gave a usable response; label: the referee's, "" where there is no verdict yet; overruled: what
    came of it goes by the other label.
    """

    answered: bool
    label: str
    by_hand: bool
    left_out: bool
    overruled: bool
    n: int


_GROUPS = """
    WITH of_run AS (SELECT id FROM experiments_iteration WHERE run_id = %(run)s),
    said AS (
        SELECT instruction_id, iteration_id, failure = '' AS good FROM experiments_response
        WHERE role = 'student' AND iteration_id IN (SELECT id FROM of_run)
    ),
    found AS (
        SELECT instruction_id, iteration_id, label, by_hand, left_out, overruled_to <> '' AS overruled FROM experiments_verdict
        WHERE iteration_id IN (SELECT id FROM of_run)
    ),
    taught AS (
        SELECT r.instruction_id FROM experiments_response r JOIN experiments_instruction i ON i.id = r.instruction_id
        WHERE r.role = 'teacher' AND r.failure = '' AND i.run_id = %(run)s
    )
    SELECT iteration_id, COALESCE(said.good, FALSE) AND taught.instruction_id IS NOT NULL AS answered, COALESCE(found.label, '') AS state,
           COALESCE(found.by_hand, FALSE), COALESCE(found.left_out, FALSE), COALESCE(found.overruled, FALSE), COUNT(*)
    FROM said FULL JOIN found USING (instruction_id, iteration_id) LEFT JOIN taught USING (instruction_id)
    GROUP BY 1, 2, 3, 4, 5, 6
"""
"""Whoever has a response of the student or a verdict is counted once, so that the groups of an iteration add up to those."""


def cache_pool_groups(run: Run) -> dict[int, list[Group]]:
    """iteration id -> how far its cache pool came. Instructions the student was not asked for yet are in no group."""
    groups: dict[int, list[Group]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_GROUPS, {"run": run.pk})
        for iteration, *values in cursor.fetchall():
            groups.setdefault(iteration, []).append(Group(*values))
    return groups


def made_by_origin(run: Run) -> dict[int, Counter[str]]:
    """iteration id -> origin -> how many instructions it made."""
    made: dict[int, Counter[str]] = {}
    for iteration, origin, n in run.instructions.order_by().values_list("iteration", "origin").annotate(n=Count("pk")):
        made.setdefault(iteration, Counter())[origin] = n
    return made


def candidates_by_fate(run: Run) -> dict[int, Counter[tuple[str, str]]]:
    """iteration id -> (origin, fate) -> number of candidates."""
    counts: dict[int, Counter[tuple[str, str]]] = {}
    rows = Candidate.objects.filter(iteration__run=run).order_by()
    for iteration, origin, fate, n in rows.values_list("iteration", "origin", "fate").annotate(n=Count("pk")):
        counts.setdefault(iteration, Counter())[origin, fate] = n
    return counts


@dataclass(frozen=True, kw_only=True)
class HeldAgainst:
    """The benchmarks, by title, that new instructions of an iteration are held against.

    known: False where they were made before that was written down; begun: whether any was asked for; since: what was imported later.
    """

    titles: Sequence[str]
    since: Sequence[str] = ()
    begun: bool = True
    known: bool = True


def held_against(run: Run, number: int) -> HeldAgainst | None:
    """What an iteration's new instructions are held against; None where the run does not decontaminate."""
    config = run.run_config()
    if not config.loop.decontaminate:
        return None
    own = [get_benchmark(name).title for name in config.evaluation.benchmarks]
    imported = dict(Benchmark.objects.values_list("name", "title"))
    names = run.iterations.filter(number=number).values_list("held_against", flat=True).first()
    begun = Candidate.objects.filter(iteration__run=run, iteration__number=number).exists()
    if names is None:
        return HeldAgainst(titles=[*own, *imported.values()], begun=begun, known=not begun)
    titles, since = ([t for name, t in imported.items() if (name in names) is held] for held in (True, False))
    return HeldAgainst(titles=[*own, *titles], since=since)


# Trajectories

SCORED = (Label.HARD.value, Label.EASY.value)

_MOVES = """
    SELECT v.iteration_id, COALESCE(before.label, '') AS was, v.label, COUNT(*)
    FROM experiments_verdict v
    JOIN experiments_iteration i ON i.id = v.iteration_id
    LEFT JOIN experiments_iteration earlier ON earlier.run_id = i.run_id AND earlier.number = i.number - 1
    LEFT JOIN experiments_verdict before ON before.iteration_id = earlier.id AND before.instruction_id = v.instruction_id
    WHERE i.run_id = %(run)s
    GROUP BY 1, 2, 3
"""


def verdict_moves(run: Run) -> dict[int, Counter[tuple[str, str]]]:
    """iteration id -> (label in the iteration before or "", label) -> number of verdicts."""
    moves: dict[int, Counter[tuple[str, str]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_MOVES, {"run": run.pk})
        for iteration, was, label, n in cursor.fetchall():
            moves.setdefault(iteration, Counter())[was, label] = n
    return moves


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean with what its interval needs. n: how many it is of; deviation: of the sample, None where there is but one."""

    value: float
    n: int
    deviation: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the 95 % interval; None where one value tells nothing of it."""
        return 1.96 * self.deviation / self.n**0.5 if self.deviation is not None and self.n > 1 else None


def mean_discrepancies_with_seeds(run: Run) -> dict[int, tuple[Mean, Mean | None]]:
    """iteration id -> mean d over all that was scored in it, and over the seeds among that. The quarantined have no d."""
    of_seeds = Q(instruction__origin=Origin.SEED.value)
    rows = Verdict.objects.filter(iteration__run=run, discrepancy__isnull=False).order_by().values("iteration")
    rows = rows.annotate(
        mean=Avg("discrepancy"),
        n=Count("pk"),
        deviation=StdDev("discrepancy", sample=True),
        seed_mean=Avg("discrepancy", filter=of_seeds),
        seed_n=Count("pk", filter=of_seeds),
        seed_deviation=StdDev("discrepancy", sample=True, filter=of_seeds),
    )
    return {
        row["iteration"]: (
            Mean(value=row["mean"], n=row["n"], deviation=row["deviation"]),
            Mean(value=row["seed_mean"], n=row["seed_n"], deviation=row["seed_deviation"]) if row["seed_n"] else None,
        )
        for row in rows
    }


# The rows behind a count

STATES = {
    "answered": "answered by teacher and student",
    "no_response": "no usable response",
    "not_asked": "not answered yet",
    "not_judged": "not judged yet",
    "by_hand": "scored by hand",
    "waiting": "quarantined, to be ruled",
    "left_out": "left out",
    "scored": "scored: hard or easy",
    "by_referee": "scored by the referee",
    "solved": "solved: hard before, easy now",
    "still_hard": "still hard",
    "regressed": "regressed: easy before, hard now",
    "still_easy": "still easy",
    "newly_scored": "newly scored",
    **REVIEW_STATES,
    **LENGTH_STATES,
}
"""What may be asked of the instructions of an iteration's cache pool, and its words."""


def in_state(rows: QuerySet[Instruction], state: str, iteration: Iteration) -> QuerySet[Instruction]:
    """Those of an iteration's cache pool that are in a state of STATES in it."""
    rows = rows.filter(iteration__number__lt=iteration.number)
    if state in REVIEW_STATES:
        return rows.filter(pk__in=in_review_state(iteration, state).values("instruction"))
    if state in LENGTH_STATES:
        return rows.filter(pk__in=in_length_state(iteration, state).values("instruction"))
    verdicts = Verdict.objects.filter(instruction=OuterRef("pk"), iteration=iteration)
    if state in ("by_hand", "left_out"):
        return rows.filter(Exists(verdicts.filter(**{state: True})))
    if state == "scored":
        return rows.filter(Exists(verdicts.filter(label__in=SCORED)))
    if state == "by_referee":
        return rows.filter(Exists(by_referee(verdicts)))
    if state == "waiting":
        return rows.filter(Exists(verdicts.filter(label=Label.QUARANTINED, left_out=False)))
    if state in ("answered", "no_response", "not_asked", "not_judged"):
        return _answered_so_far(rows, state, iteration, verdicts)
    return _moved(rows, state, iteration, verdicts)


def _answered_so_far(rows: QuerySet[Instruction], state: str, iteration: Iteration, verdicts: QuerySet[Verdict]) -> QuerySet[Instruction]:
    said = Response.objects.filter(instruction=OuterRef("pk"), role=Role.STUDENT, iteration=iteration)
    taught = Response.objects.filter(instruction=OuterRef("pk"), role=Role.TEACHER, failure="")
    seen, answered = Exists(said) | Exists(verdicts), Exists(said.filter(failure="")) & Exists(taught)
    wanted = {"answered": answered, "no_response": seen & ~answered, "not_asked": ~seen, "not_judged": Exists(said) & ~Exists(verdicts)}
    return rows.filter(wanted[state])


def _moved(rows: QuerySet[Instruction], state: str, iteration: Iteration, verdicts: QuerySet[Verdict]) -> QuerySet[Instruction]:
    before = Verdict.objects.filter(
        instruction=OuterRef("pk"), iteration__run=iteration.run_id, iteration__number=iteration.number - 1, label__in=SCORED
    )
    if state == "newly_scored":
        return rows.filter(Exists(verdicts.filter(label__in=SCORED)), ~Exists(before))
    was, now = {"solved": ("hard", "easy"), "still_hard": ("hard", "hard"), "regressed": ("easy", "hard"), "still_easy": ("easy", "easy")}[
        state
    ]
    return rows.filter(Exists(verdicts.filter(label=now)), Exists(before.filter(label=was)))
