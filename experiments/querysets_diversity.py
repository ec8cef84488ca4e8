"""The questions asked of the tables by the diversity page: counts by SQL, and the rows behind each count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from django.db import connection
from django.db.models import Aggregate, Avg, Count, Exists, FloatField, OuterRef, Q, QuerySet

from experiments.models import Diversity, Instruction, Iteration, Run, Traits, Verdict
from trainer import diversity
from trainer.config import RunConfig
from trainer.pools import wanted
from trainer.records import Label, Origin

NONE = "-"
"""Stands in an address for a trait that could not be told."""


class Median(Aggregate):
    """Postgres' median of a group."""

    function = "PERCENTILE_CONT"
    template = "%(function)s(0.5) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = FloatField()


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the instructions of an iteration are, in words. n: those whose traits are known."""

    n: int
    mean: float
    median: float


def measured(run: Run) -> dict[int, diversity.Diversity]:
    """iteration number -> what was measured of it."""
    rows = Diversity.objects.filter(iteration__run=run).select_related("iteration")
    return {row.iteration.number: row.record for row in rows}


def made(run: Run) -> dict[int, int]:
    """iteration number -> how many instructions it made; the seeds under 0."""
    return dict(run.instructions.order_by().values_list("iteration__number").annotate(n=Count("pk")))


def lengths(run: Run) -> dict[int, Lengths]:
    """iteration number -> how long its new instructions are; the seeds under 0."""
    rows = _traits(run).values("instruction__iteration__number").annotate(n=Count("pk"), mean=Avg("words"), median=Median("words"))
    return {row["instruction__iteration__number"]: Lengths(n=row["n"], mean=row["mean"], median=row["median"]) for row in rows}


def counts_of(run: Run, trait: str) -> dict[int, Counter[str]]:
    """iteration number -> value of a trait (`language`, `verb`) -> how many of its new instructions have it; "" where it cannot be told."""
    counts: dict[int, Counter[str]] = {}
    for number, value, n in _traits(run).values_list("instruction__iteration__number", trait).annotate(n=Count("pk")):
        counts.setdefault(number, Counter())[value] = n
    return counts


def words_of(run: Run, numbers: set[int]) -> dict[int, Counter[int]]:
    """iteration number -> length in words -> how many of its new instructions have it."""
    rows = _traits(run).filter(instruction__iteration__number__in=numbers)
    counts: dict[int, Counter[int]] = {}
    for number, words, n in rows.values_list("instruction__iteration__number", "words").annotate(n=Count("pk")):
        counts.setdefault(number, Counter())[words] = n
    return counts


def _traits(run: Run) -> QuerySet[Traits]:
    return Traits.objects.filter(instruction__run=run).order_by()


def root_words(run: Run, number: int) -> dict[str, Counter[tuple[str, str]]]:
    """The paper's Figure 3 for an iteration: (root verb, object) -> how many, of its cache pool, of what is hard in it, of what it made."""
    of_run = _traits(run)
    hard = Verdict.objects.filter(instruction=OuterRef("pk"), iteration__run=run, iteration__number=number, label=Label.HARD)
    sets = {
        "cache_pool": of_run.filter(instruction__iteration__number__lt=number),
        "hard": of_run.filter(Exists(hard)),
        "new_hard": of_run.filter(instruction__iteration__number=number, instruction__origin=Origin.HARD),
    }
    return {
        name: Counter({(verb, noun): n for verb, noun, n in rows.values_list("verb", "noun").annotate(n=Count("pk"))})
        for name, rows in sets.items()
    }


# Parents

PARENTS = {
    "parents_hard": "could be drawn as a hard parent",
    "parents_easy": "could be drawn as an easy parent",
    "childless_hard": "nothing hard was made from it",
    "childless_easy": "nothing easy was made from it",
}
"""What may be asked of the parents of an iteration, and its words."""


@dataclass(frozen=True, kw_only=True)
class Parents:
    """Instructions that one origin of an iteration drew its parents from; childless: those nothing accepted was made from."""

    parents: int
    childless: int
    accepted: int

    @property
    def expected(self) -> float:
        """How many would be childless if each accepted instruction had drawn its parent among all of them."""
        return self.parents * (1 - 1 / self.parents) ** self.accepted if self.parents else 0.0


_CHILDREN = """
    WITH children AS (
        SELECT DISTINCT iteration_id, origin, parent_id FROM experiments_instruction WHERE run_id = %(run)s AND parent_id IS NOT NULL
    ), made AS (
        SELECT iteration_id, origin, COUNT(*) AS n FROM experiments_instruction WHERE run_id = %(run)s GROUP BY 1, 2
    ), begun AS (
        SELECT id, number FROM experiments_iteration it WHERE run_id = %(run)s
        AND EXISTS (SELECT 1 FROM experiments_candidate c WHERE c.iteration_id = it.id)
    )
"""
_BY_VERDICT = f"""{_CHILDREN}, parents AS (
        SELECT v.iteration_id, COALESCE(NULLIF(v.overruled_to, ''), v.label) AS origin, v.instruction_id AS id
        FROM experiments_verdict v JOIN begun ON begun.id = v.iteration_id
        WHERE COALESCE(NULLIF(v.overruled_to, ''), v.label) = ANY(%(origins)s)
    )
"""
_ANY_PARENT = f"""{_CHILDREN}, parents AS (
        SELECT begun.id AS iteration_id, o.origin, i.id
        FROM begun CROSS JOIN unnest(%(origins)s::text[]) AS o(origin)
        JOIN experiments_instruction i ON i.run_id = %(run)s
        JOIN experiments_iteration made_in ON made_in.id = i.iteration_id AND made_in.number < begun.number
    )
"""
_COUNTED = """
    SELECT begun.number, p.origin, COUNT(*), COUNT(*) FILTER (WHERE c.parent_id IS NULL), COALESCE(MAX(made.n), 0)
    FROM begun JOIN parents p ON p.iteration_id = begun.id
    LEFT JOIN children c ON c.iteration_id = begun.id AND c.origin = p.origin AND c.parent_id = p.id
    LEFT JOIN made ON made.iteration_id = begun.id AND made.origin = p.origin
    GROUP BY 1, 2 ORDER BY 1, 2 DESC
"""


def parents_of(run: Run, config: RunConfig) -> dict[int, dict[str, Parents]]:
    """iteration number -> origin -> its parents, of the iterations that asked for new instructions; in one query."""
    origins = [origin.value for origin, count in wanted(config.loop).items() if count]
    sql = (_BY_VERDICT if config.loop.parents == "by_verdict" else _ANY_PARENT) + _COUNTED
    found: dict[int, dict[str, Parents]] = {}
    with connection.cursor() as cursor:
        cursor.execute(sql, {"run": run.pk, "origins": origins})
        for number, origin, parents, childless, accepted in cursor.fetchall():
            found.setdefault(number, {})[origin] = Parents(parents=parents, childless=childless, accepted=accepted)
    return found


def eligible(rows: QuerySet[Instruction], iteration: Iteration, origin: str, config: RunConfig) -> QuerySet[Instruction]:
    """The instructions of an iteration's cache pool that the parents of an origin are drawn from."""
    pool = rows.filter(iteration__number__lt=iteration.number)
    if config.loop.parents != "by_verdict":
        return pool
    verdicts = Verdict.objects.filter(Q(label=origin, overruled_to="") | Q(overruled_to=origin), iteration=iteration)
    return pool.filter(Exists(verdicts.filter(instruction=OuterRef("pk"))))


def as_parents(rows: QuerySet[Instruction], state: str, iteration: Iteration) -> QuerySet[Instruction]:
    """Those that are in a state of PARENTS in an iteration."""
    kind, _, origin = state.partition("_")
    found = eligible(rows, iteration, origin, iteration.run.run_config())
    children = Instruction.objects.filter(parent=OuterRef("pk"), iteration=iteration, origin=origin)
    return found.filter(~Exists(children)) if kind == "childless" else found


def having(rows: QuerySet[Instruction], **traits: str) -> QuerySet[Instruction]:
    """Instructions with these traits: `language`, `verb`, `noun`; NONE for what could not be told."""
    return rows.filter(**{f"traits__{name}": "" if value == NONE else value for name, value in traits.items()})
