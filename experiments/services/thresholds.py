"""Thresholds: a tau that a person sets for the iterations of a run that are still to be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models import Max, Q

from experiments.models import Job, Run, Threshold, Verdict
from experiments.querysets import hold_back
from experiments.states import JobState
from trainer.errors import ConfigError
from trainer.plan import Step

if TYPE_CHECKING:
    from django.contrib.auth.models import User

LOW, HIGH = -9.0, 9.0


def next_judged(run: Run) -> int | None:
    """The first iteration that another tau could hold for: its judging has not begun. None where all have."""
    begun = Job.objects.filter(
        Q(started_at__isnull=False) | Q(state=JobState.RUNNING), stage__iteration__run=run, step=Step.JUDGEMENTS.value
    )
    last = max(
        begun.aggregate(last=Max("stage__iteration__number"))["last"] or 0,
        Verdict.objects.filter(iteration__run=run).aggregate(last=Max("iteration__number"))["last"] or 0,
    )
    return last + 1 if last < run.run_config().loop.iterations else None


def set_tau(run: Run, tau: float, *, by: User) -> Threshold:
    """Use this tau from the next iteration on. Verdicts that are there stay as they are.

    Raises ConfigError for a tau out of range, or where every iteration has been judged.
    """
    if not LOW <= tau <= HIGH:
        raise ConfigError(f"Tau must be from {LOW:g} to {HIGH:g}, not {tau:g}.", fields={"tau": f"From {LOW:g} to {HIGH:g}."})
    with transaction.atomic():
        Run.objects.select_for_update().get(pk=run.pk)
        hold_back(run, Step.JUDGEMENTS)
        iteration = next_judged(run)
        if iteration is None:
            text = "Every iteration of this run is judged, or being judged. Launch a new run with this tau."
            raise ConfigError(text, fields={"tau": text})
        threshold, _ = Threshold.objects.update_or_create(run=run, iteration=iteration, defaults={"tau": tau, "set_by": by})
    return threshold
