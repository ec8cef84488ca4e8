"""`python -m lionweb.local up` as `make run` starts it: until the first page is there, and the memory of what then waits for work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from time import monotonic

import psutil

from lionweb import local
from tests import stack
from tests.bench.report import Bar, Figure, quantile, say

STARTS = 3
WEB_AND_WORKERS = ("web", "teacher", "gpu", "sweep")
MIB = 2**20


def measure() -> Iterator[Figure]:
    """The first start makes the database; the later ones, of which the median counts, find it."""
    data = stack.make_data_folder()
    try:
        with running(data) as first_s:
            say(f"first start: {first_s:.1f} s")
        times = []
        for _ in range(STARTS):
            with running(data) as took:
                times.append(took)
                say(f"start: {took:.1f} s")
                if len(times) == STARTS:
                    rss, pss = memory(local.Place(data))
    finally:
        local.end_leftovers(local.Place(data))
        rmtree(data, ignore_errors=True)
    yield Figure(name="start", value=quantile(times, 0.5), unit="s", bar=Bar(at_most=5))
    yield Figure(name="start_first", value=first_s, unit="s", bar=Bar(at_most=5))
    yield Figure(name="start_memory", value=rss, unit="MB resident", bar=Bar(at_most=600))
    yield Figure(name="start_memory_shared_once", value=pss, unit="MB proportional", bar=Bar(at_most=600))


@contextmanager
def running(data: Path) -> Iterator[float]:
    """LionWeb for the block; gives the seconds from the command to the first page, whole."""
    port = stack.free_port()
    theirs = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY"}}
    ours = {"LIONWEB_DATA": str(data), "LIONWEB_PORT": str(port), "LIONWEB_OFFLINE_PORT": str(stack.free_port())}
    started = monotonic()
    with (data / "terminal.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lionweb.local", "up"], cwd=stack.ROOT, env={**theirs, **ours}, stdout=log, stderr=log
        )
    try:
        stack.wait_until(_or_ended(lambda: is_there(f"http://127.0.0.1:{port}/"), process), timeout_s=120, what="the first page")
        took = monotonic() - started
        wanted = {*WEB_AND_WORKERS, "postgres", "offline"}
        stack.wait_until(_or_ended(lambda: set(processes(local.Place(data))) == wanted, process), timeout_s=60, what="every process")
        yield took
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _or_ended(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> Callable[[], bool]:
    def holds() -> bool:
        assert process.poll() is None, "LionWeb ended by itself"
        return condition()

    return holds


def is_there(url: str) -> bool:
    """Whether the start page, which leads a stranger to sign in, is answered."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return response.status == 200 and bool(response.read())
    return False


def processes(place: local.Place) -> dict[str, int]:
    with suppress(OSError):
        return {info["name"]: info["pid"] for info in local._connect(place).getAllProcessInfo() if info["statename"] == "RUNNING"}
    return {}


def memory(place: local.Place) -> tuple[float, float]:
    """MB of the web server and the workers with their children once the workers wait for work: resident, and shared pages once."""
    for name in ("teacher", "gpu"):
        log = place.logs / f"{name}.log"
        stack.wait_until(lambda log=log: " ready." in log.read_text(errors="replace").rpartition("[tasks]")[2], timeout_s=60, what=name)  # type: ignore[misc]
    rss = pss = 0.0
    for name, pid in processes(place).items():
        parent = psutil.Process(pid)
        full = [process.memory_full_info() for process in (parent, *parent.children(recursive=True))]
        say(f"{name}: {sum(m.rss for m in full) / MIB:.0f} MB resident, {sum(m.pss for m in full) / MIB:.0f} MB proportional")
        if name in WEB_AND_WORKERS:
            rss += sum(m.rss for m in full) / MIB
            pss += sum(m.pss for m in full) / MIB
    return rss, pss
