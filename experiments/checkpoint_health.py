"""What is known to be wrong with the files of checkpoints: what the last check of them found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db.models import F
from django.db.models.functions import Coalesce

from experiments.models import Checkpoint, Errand, ErrandKind
from experiments.states import JobState

REFRESHES = (ErrandKind.VERIFY, ErrandKind.RESTORE)
"""Kinds of errands after which the state of the files is known: a check tells it, and what was brought back was checked."""


def last_checks(checkpoints: Iterable[int]) -> dict[int, Errand]:
    """Checkpoint id -> the errand that last told how its files are."""
    rows = Errand.objects.filter(checkpoint__in=list(checkpoints), kind__in=REFRESHES, state=JobState.FINISHED)
    # A damaged one may have been tuned again since.
    rows = rows.annotate(began=Coalesce("started_at", "created_at")).filter(began__gte=F("checkpoint__created_at"))
    return {errand.checkpoint_id: errand for errand in rows.order_by("checkpoint_id", "-pk").distinct("checkpoint_id")}


def damaged(checkpoints: Iterable[int]) -> dict[int, Errand]:
    """Checkpoint id -> the check that found its files damaged, of those whose last check did."""
    return {pk: errand for pk, errand in last_checks(checkpoints).items() if problems_of(errand)}


def damage_of(checkpoint: Checkpoint) -> Errand | None:
    """The check that found the files of one checkpoint damaged; None where they are sound, never checked, or deleted."""
    return None if checkpoint.deleted_at else damaged([checkpoint.pk]).get(checkpoint.pk)


def problems_of(errand: Errand) -> Sequence[str]:
    """What a check of files found, a sentence each."""
    return errand.result.get("problems", ()) if errand.kind == ErrandKind.VERIFY else ()
