"""The questions asked of one iteration's verdicts by the Referee page: counts by SQL, and the rows behind each count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from django.db.models import Count, F, FilteredRelation, FloatField, Q, QuerySet
from django.db.models.functions import Floor, Length, Sign

from experiments.models import Iteration, Role, Verdict
from trainer.records import Label

T = TypeVar("T", bound=Any)

BIN = 0.5
"""Of scores and of d, in points, the lower end included."""

RANGES = {"d": "discrepancy", "teacher": "teacher_score", "student": "student_score"}
"""What a range may be asked of, and its column; beside these `gap`, of |d|."""


def in_ranges(rows: QuerySet[T], chosen: Mapping[str, Any]) -> QuerySet[T]:
    """Rows with scores that lie within the chosen ranges: from `d_from`, included, to `d_to`, excluded; and so for each name."""
    for name, column in RANGES.items():
        if f"{name}_from" in chosen:
            rows = rows.filter(**{f"{column}__gte": chosen[f"{name}_from"]})
        if f"{name}_to" in chosen:
            rows = rows.filter(**{f"{column}__lt": chosen[f"{name}_to"]})
    if "gap_from" in chosen:
        rows = rows.filter(Q(discrepancy__gte=chosen["gap_from"]) | Q(discrepancy__lte=-chosen["gap_from"]))
    if "gap_to" in chosen:
        rows = rows.filter(discrepancy__lt=chosen["gap_to"], discrepancy__gt=-chosen["gap_to"])
    return rows


def score_bins(iteration: Iteration, column: str) -> dict[float, int]:
    """Lower end of a bin -> how many verdicts have a mean score in it. column: `teacher_score` or `student_score`."""
    rows = Verdict.objects.filter(iteration=iteration, **{f"{column}__isnull": False}).order_by()
    placed = rows.annotate(bin=Floor(F(column) / BIN, output_field=FloatField()))
    return {place * BIN: n for place, n in placed.values_list("bin").annotate(n=Count("pk")).order_by("bin")}


# Length

LENGTH_STATES = {
    "longer_won": "won by the longer response",
    "shorter_won": "won by the shorter response",
    "scored_alike": "scored alike, lengths differ",
    "same_length": "both responses equally long",
}
"""What may be asked of the verdicts that the referee gave, and its words: each is in one of them."""


class LengthGroup(NamedTuple):
    """Verdicts alike in who won (1 the teacher, -1 the student, 0 nobody) and in length difference, teacher - student, in characters."""

    winner: float
    difference: int
    n: int


def length_groups(iteration: Iteration) -> list[LengthGroup]:
    """The verdicts that the referee gave in an iteration, grouped."""
    rows = _with_lengths(iteration).annotate(winner=Sign("discrepancy"), difference=F("teacher_length") - F("student_length"))
    return [LengthGroup(*row) for row in rows.values_list("winner", "difference").annotate(n=Count("pk"))]


def in_length_state(iteration: Iteration, state: str) -> QuerySet[Verdict]:
    """The verdicts of an iteration that are in a state of LENGTH_STATES."""
    longer, shorter = Q(teacher_length__gt=F("student_length")), Q(teacher_length__lt=F("student_length"))
    teacher, student = Q(discrepancy__gt=0), Q(discrepancy__lt=0)
    wanted = {
        "longer_won": longer & teacher | shorter & student,
        "shorter_won": longer & student | shorter & teacher,
        "scored_alike": Q(discrepancy=0) & ~Q(teacher_length=F("student_length")),
        "same_length": Q(teacher_length=F("student_length")),
    }
    return _with_lengths(iteration).filter(wanted[state])


def _with_lengths(iteration: Iteration) -> QuerySet[Verdict]:
    responses = "instruction__responses"
    of_teacher = Q(**{f"{responses}__role": Role.TEACHER})
    of_student = Q(**{f"{responses}__role": Role.STUDENT, f"{responses}__iteration": iteration.pk})
    return (
        by_referee(Verdict.objects.filter(iteration=iteration))
        .annotate(taught=FilteredRelation(responses, condition=of_teacher), said=FilteredRelation(responses, condition=of_student))
        .annotate(teacher_length=Length("taught__text"), student_length=Length("said__text"))
        .filter(teacher_length__isnull=False, student_length__isnull=False)
        .order_by()
    )


def by_referee(verdicts: QuerySet[Verdict]) -> QuerySet[Verdict]:
    """Those that the referee gave: neither quarantined nor scored by hand."""
    return verdicts.exclude(label=Label.QUARANTINED).filter(by_hand=False)
