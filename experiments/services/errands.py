"""Errands: what people ask of a checkpoint beside its run. Asked, claimed, kept alive by a lease, ended, and found when they are lost.

As with jobs, the database is the truth and a message only says "look at errand N". An errand is tried once: whoever asked asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery import current_app
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from experiments.models import Checkpoint, Errand
from experiments.services.jobs import RESEND_AFTER
from experiments.states import LIVE, MOVES, JobState, Queue
from lionweb.broker import BROKER_ERRORS
from trainer.errors import Cancelled
from trainer.text import storable

logger = logging.getLogger(__name__)


def ask(kind: str, checkpoint: Checkpoint, *, by: User, queue: str = Queue.GPU, **options: Any) -> Errand:
    """Queue an errand and tell a worker of its queue once the transaction is through."""
    errand = Errand.objects.create(kind=kind, checkpoint=checkpoint, requested_by=by, queue=queue, options=options)
    transaction.on_commit(lambda: announce(errand))
    return errand


def announce(errand: Errand) -> None:
    """Tell a worker to look at it. A broker that is down is no failure: the sweep announces again."""
    try:
        current_app.send_task("experiments.tasks.run_errand", args=[errand.pk], queue=errand.queue)
    except BROKER_ERRORS as error:
        logger.warning("errand %s could not be announced: %s", errand.pk, error)
        return
    Errand.objects.filter(pk=errand.pk).update(sent_at=timezone.now())


def claim(errand_id: int, *, worker: str) -> Errand | None:
    """Take a queued errand for a worker, or None where it is no longer to be had."""
    if not move(errand_id, JobState.RUNNING, worker=worker, started_at=Now(), lease_expires_at=_lease_end()):
        return None
    return Errand.objects.select_related("checkpoint__iteration__run", "requested_by").get(pk=errand_id)


@dataclass(frozen=True)
class Beat:
    """What a heartbeat learns: whether the errand is still ours, and whether somebody asked for it to stop."""

    held: bool
    stop: bool


def heartbeat(errand: Errand, *, note: str = "") -> Beat:
    """Renew the lease of a running errand; one that was asked to stop keeps it until its work has stopped."""
    held = Errand.objects.filter(pk=errand.pk, state=JobState.RUNNING, worker=errand.worker)
    if not held.update(lease_expires_at=_lease_end(), note=storable(note)):
        return Beat(held=False, stop=True)
    return Beat(held=True, stop=held.filter(stop_requested_at__isnull=False).exists())


@contextmanager
def while_held(errand: Errand) -> Iterator[None]:
    """Write down what came of an errand only while it is ours: one that was given up must not change its checkpoint any more.

    Raises Cancelled where it is not.
    """
    with transaction.atomic():
        held = Errand.objects.select_for_update().filter(pk=errand.pk, state=JobState.RUNNING, worker=errand.worker)
        if not held.exists():
            raise Cancelled("It was given up before it was done.")
        yield


def end(errand: Errand, state: str, *, reason: str = "", result: dict[str, Any] | None = None) -> bool:
    """End an errand that this worker holds."""
    values: dict[str, Any] = {"reason": storable(reason), "ended_at": Now(), "note": ""}
    if result is not None:
        values["result"] = result
    ended = move(errand.pk, state, only_if=Q(worker=errand.worker), **values)
    logger.info("errand %s %s %s", errand.pk, state if ended else "is no longer ours", reason)
    return ended


def stop(errand: Errand) -> bool:
    """A queued errand stops at once, a running one at its next heartbeat. False where it is over already."""
    if move(errand.pk, JobState.STOPPED, only_if=Q(state=JobState.QUEUED), reason="Stopped before it began.", ended_at=Now()):
        return True
    return bool(Errand.objects.filter(pk=errand.pk, state=JobState.RUNNING).update(stop_requested_at=Now()))


def move(errand_id: int, to: str, *, only_if: Q | None = None, **values: Any) -> bool:
    """Move an errand to a state, if MOVES allows it from where it is now. Two callers can never both get True."""
    sources = [source for source, targets in MOVES.items() if to in targets]
    return Errand.objects.filter(only_if or Q(), pk=errand_id, state__in=sources).update(state=to, **values) == 1


def sweep() -> int:
    """End errands whose lease is over, and announce queued ones again that nobody took. Gives how many were lost."""
    lost = 0
    for errand in Errand.objects.filter(state=JobState.RUNNING, lease_expires_at__lt=Now()):
        reason = f"Worker {errand.worker} was not heard of any more. Ask again."
        lost += move(errand.pk, JobState.CRASHED, only_if=Q(lease_expires_at__lt=Now()), reason=reason, ended_at=Now())
    unsent = Q(sent_at__isnull=True) | Q(sent_at__lt=timezone.now() - RESEND_AFTER)
    for errand in Errand.objects.filter(unsent, state=JobState.QUEUED):
        announce(errand)
    return lost


def live_errands() -> Any:
    """Errands that are queued or running, newest first."""
    return Errand.objects.filter(state__in=sorted(LIVE)).select_related("checkpoint__iteration__run", "requested_by")


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LIONWEB_LEASE_S)
