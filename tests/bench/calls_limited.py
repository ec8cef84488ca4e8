"""Calls against a server that takes 3,000 a minute: how much of that is used, and how many calls are answered 429.

From a cold start, by one worker and by four, each a process, with the limit in the server's headers and without any word of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from time import monotonic

from tests import stack
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
        started = monotonic()
        commands = [
            [sys.executable, "-m", "tests.bench.caller", teacher.base_url, str(number), str(SECONDS), "0"] for number in range(workers)
        ]
        processes = [subprocess.Popen(command, cwd=stack.ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
        answered = sum(json.loads(process.communicate()[0])["answered"] for process in processes)
        took = monotonic() - started
        stats = teacher.stats()
    name = f"calls_limited_{'headers' if headers else 'silent'}_{workers}"
    used = answered / (RPM / 60 * SECONDS)
    limited = stats["limited"] / (stats["limited"] + stats["answered"])
    say(f"{name}: {answered} answered, {stats['limited']} answered 429, in {took:.1f} s with the start of the workers")
    yield Figure(name=f"{name}_used", value=used, unit="of the limit", bar=Bar(at_least=0.95 if headers else 0.85))
    yield Figure(name=f"{name}_refused", value=limited, unit="of the calls", bar=Bar(at_most=0.05))
