"""One errand: what it asks is done by the function of its kind, under a heartbeat, and how it ended becomes its row."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from experiments.models import Errand, ErrandKind
from experiments.services import errands
from experiments.services.durable import durably
from experiments.states import JobState
from trainer.errors import Cancelled, ChildDied, TrainerError

logger = logging.getLogger(__name__)

shutting_down = threading.Event()
"""Set when this worker was told to end."""

ANSWER_BEAT_S = 1.0
"""Somebody looks on while a question is answered, and a stop is noticed at a beat."""

Work = Callable[[Errand, "ErrandPulse"], dict[str, Any]]
"""Does an errand and gives its result. Raises a TrainerError whose text is meant for a person."""


def run_errand(errand_id: int, *, worker: str, work: dict[str, Work]) -> str:
    """Claim an errand and do it. Gives its final state, or "" where another worker has it, or it was given up meanwhile."""
    errand = errands.claim(errand_id, worker=worker)
    if errand is None:
        return ""
    with ErrandPulse(errand) as pulse:
        state, reason, result = _do(errand, pulse, work)
    return state if durably(lambda: errands.end(errand, state, reason=reason, result=result)) else ""


def _do(errand: Errand, pulse: ErrandPulse, work: dict[str, Work]) -> tuple[str, str, dict[str, Any] | None]:
    """The outer edge: every error ends here, in a row a person can read."""
    try:
        return JobState.FINISHED, "", work[errand.kind](errand, pulse)
    except Cancelled as stopped:
        return JobState.STOPPED, str(stopped), None
    except (ChildDied, OperationalError, InterfaceError) as died:
        return JobState.CRASHED, str(died), None
    except TrainerError as error:
        return JobState.FAILED, str(error), None
    except BaseException as error:
        logger.exception("errand %s failed", errand.pk)
        told = "".join(traceback.format_exception_only(error)).strip()
        return JobState.FAILED, f"An error nobody foresaw, please report it: {told}", None


class ErrandPulse:
    """The heartbeat of a running errand, in a thread of its own. `cancelled` once it was asked to stop, or was lost."""

    def __init__(self, errand: Errand) -> None:
        self._errand = errand
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"errand-{errand.pk}", daemon=True)
        self._note = ""
        self._beaten = errands.Beat(held=True, stop=False)

    def tell(self, note: str) -> None:
        """How far it is, shown from the next beat on."""
        self._note = note

    @property
    def cancelled(self) -> bool:
        return self._beaten.stop or shutting_down.is_set()

    def __enter__(self) -> ErrandPulse:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        is_watched = self._errand.kind == ErrandKind.ANSWER
        every_s = min(settings.LIONWEB_HEARTBEAT_S, ANSWER_BEAT_S) if is_watched else settings.LIONWEB_HEARTBEAT_S
        while self._beaten.held and not self._over.wait(every_s):
            try:
                self._beaten = durably(lambda: errands.heartbeat(self._errand, note=self._note), for_s=settings.LIONWEB_LEASE_S)
            except Exception:
                # Without a beat the lease runs out, whatever the reason: the work must not go on unheld.
                logger.exception("errand %s lost its heartbeat", self._errand.pk)
                self._beaten = errands.Beat(held=False, stop=True)
        connection.close()
