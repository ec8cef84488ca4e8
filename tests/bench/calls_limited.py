"""Calls against a server that takes 3,000 a minute: how much of that is used, and how many calls are answered 429.

From a cold pace, by one worker and by four, each a process, with the limit in the server's headers and without any word of it; from
the moment when all workers are ready.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.caller import Callers
from tests.bench.place import database
from tests.bench.report import Bar, Figure, say
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher

RPM = 3000
SECONDS = 60.0


def measure() -> Iterator[Figure]:
    with database():
        for headers in (True, False):
            for workers in (1, 4):
                yield from _limited(workers, headers=headers)


def _limited(workers: int, *, headers: bool) -> Iterator[Figure]:
    # A port of its own for each, and so a pace of its own: every one starts cold.
    with OfflineTeacher(Knobs(latency_ms=50, rpm=RPM, no_limit_headers=not headers)) as teacher:
        callers = Callers(workers, teacher.base_url, seconds=SECONDS)
        callers.go()
        answered = len(callers.answered_at())
        stats = teacher.stats()
    name = f"calls_limited_{'headers' if headers else 'silent'}_{workers}"
    used = answered / (RPM / 60 * SECONDS)
    limited = stats["limited"] / (stats["limited"] + stats["answered"])
    say(f"{name}: {answered} answered, {stats['limited']} answered 429")
    yield Figure(name=f"{name}_used", value=used, unit="of the limit", bar=Bar(at_least=0.95 if headers else 0.85))
    yield Figure(name=f"{name}_refused", value=limited, unit="of the calls", bar=Bar(at_most=0.05))
