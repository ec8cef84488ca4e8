"""What is not well: checkpoints whose files are known to be damaged, workers that are not heard of."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django import template
from django.utils import timezone

from experiments import checkpoint_health
from experiments.board import unheard_for
from experiments.models import Checkpoint, Errand

register = template.Library()


@register.filter
def damage(checkpoint: Checkpoint) -> Errand | None:
    """The check that found a checkpoint's files damaged, if its last one did."""
    return checkpoint_health.damage_of(checkpoint)


@register.filter
def damaged(checkpoints: Iterable[Checkpoint]) -> set[int]:
    """The ids of those whose files are damaged, as far as is known; one query for all."""
    return set(checkpoint_health.damaged(row.pk for row in checkpoints if not row.deleted_at))


@register.filter
def found_damage(errand: Errand) -> bool:
    """Whether an errand was a check that found damage."""
    return bool(checkpoint_health.problems_of(errand))


@register.filter
def silence(errand: Errand) -> timedelta | None:
    """How long the worker of a running errand has not been heard of, where that is too long to be well."""
    return unheard_for(errand, timezone.now())
