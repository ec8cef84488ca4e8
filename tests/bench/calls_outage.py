"""How soon calls are back at full rate after a server was out of order for a minute (503), one that takes 3,000 a minute and says so."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from tests import stack
from tests.bench.caller import Callers
from tests.bench.place import database
from tests.bench.report import Bar, Figure, say
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher

RPM = 3000
BEFORE_S, OUTAGE_S, AFTER_S = 10, 60, 40
WINDOW_S = 5.0
FULL_SHARE = 0.95


def measure() -> Iterator[Figure]:
    with database(), OfflineTeacher(Knobs(latency_ms=50, rpm=RPM)) as teacher:
        callers = Callers(1, teacher.base_url, seconds=BEFORE_S + OUTAGE_S + AFTER_S)
        callers.go()
        warm = RPM / 60 * BEFORE_S
        stack.wait_until(lambda: teacher.stats()["answered"] >= warm, timeout_s=2 * BEFORE_S, what="calls at full rate")
        teacher.begin_outage(OUTAGE_S)
        over = time.time() + OUTAGE_S
        answered_at = callers.answered_at()
    before, after = _in_window(answered_at, over - OUTAGE_S), _in_window(answered_at, answered_at[-1])
    say(f"calls_outage: answered in {WINDOW_S:g} s: {before} before the outage, {after} at the end")
    bar = Bar(at_most=15)
    yield Figure(name="calls_outage", value=seconds_until_full(answered_at, over), unit="s until full rate", bar=bar)


def seconds_until_full(answered_at: Sequence[float], over: float) -> float:
    """From the end of the outage to that of the first WINDOW_S with all but a few of the calls that the limit allows.

    Raises RuntimeError where there was none.
    """
    for at in answered_at[bisect_left(answered_at, over) :]:
        if _in_window(answered_at, at) >= FULL_SHARE * RPM / 60 * WINDOW_S:
            return at - over
    raise RuntimeError(f"not at full rate {AFTER_S} s after the outage")


def _in_window(answered_at: Sequence[float], end: float) -> int:
    """Calls answered in the WINDOW_S before, that moment included."""
    return bisect_left(answered_at, end) + 1 - bisect_left(answered_at, end - WINDOW_S)
