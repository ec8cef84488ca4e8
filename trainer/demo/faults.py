"""Faults to practise with, drawn for each attempt at a request."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from trainer.demo.draws import share
from trainer.demo.knobs import Knobs


class Fault(StrEnum):
    """What befalls one attempt."""

    LIMITED = "limited"
    """Answered 429."""
    ERROR = "error"
    """Answered 500."""
    HANG = "hang"
    """Charged and never answered."""
    RESET = "reset"
    """Charged, and the connection breaks in the middle of the reply."""
    MANGLE = "mangled"
    """Charged, and the reply arrives as JSON that is none."""


class Faults:
    """Draws at most one fault for each attempt at a request."""

    def __init__(self, knobs: Knobs) -> None:
        rates = {
            Fault.LIMITED: knobs.limited_rate,
            Fault.ERROR: knobs.error_rate,
            Fault.HANG: knobs.hang_rate,
            Fault.RESET: knobs.reset_rate,
            Fault.MANGLE: knobs.mangle_rate,
        }
        self._rates = {fault: rate for fault, rate in rates.items() if rate}
        self._attempts: Counter[bytes] = Counter()

    def draw(self, digest: bytes) -> Fault | None:
        if not self._rates:
            return None
        self._attempts[digest] += 1
        attempt = self._attempts[digest]
        return next((fault for fault, rate in self._rates.items() if share(digest, f"{fault} {attempt}") < rate), None)
