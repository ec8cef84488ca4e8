"""Real servers and workers for the tests: PostgreSQL, Celery workers, Redis. Each is started by a fixture of conftest.py."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
# The tests' own server may forget everything at a power cut.
FAST_POSTGRES = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
QUEUES = ("teacher", "gpu")


def make_data_folder() -> Path:
    """A data folder of this test session: near the root, since a Unix socket's path must be short."""
    return Path(tempfile.mkdtemp(prefix="lionweb-tests-"))


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Asks again and again until `condition` holds. Raises AssertionError, saying `what` was waited for, when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_database_url(url: str) -> str:
    """The URL of the database that pytest-django makes beside the one of `url`."""
    return _renamed(url, lambda name: f"test_{name}")


def database_url_of_process(url: str, process: str) -> str:
    """The URL for one of several processes that share the tests: each makes a database of its own beside this one."""
    return _renamed(url, lambda name: f"{name}_{process}")


def _renamed(url: str, rename: Callable[[str], str]) -> str:
    address, _, query = url.partition("?")
    head, _, name = address.rpartition("/")
    return f"{head}/{rename(name)}{'?' if query else ''}{query}"


test_database_url.__test__ = False  # type: ignore[attr-defined]  # a helper, whatever pytest thinks of its name


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis of our own for the block; gives its broker URL."""
    port = free_port()
    command = [str(shutil.which("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts_connections(port), timeout_s=10, what="redis-server")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Workers:
    """Celery workers as processes, started as the Procfile starts them, on the test database."""

    environment: Mapping[str, str]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    logs: list[IO[bytes]] = field(default_factory=list)

    def start(self, *queues: str) -> None:
        """Starts a worker of each queue, and waits until it takes messages."""
        before = {queue: self.log(queue).count(" ready.") for queue in queues}
        for queue in queues:
            self.processes[queue] = self._spawn(queue)
        for queue in queues:
            wait_until(lambda queue=queue: self.log(queue).count(" ready.") > before[queue], timeout_s=30, what=f"the {queue} worker")  # type: ignore[misc]

    def kill(self, queue: str) -> None:
        """Ends a worker as a crash would: at once, with no chance to say goodbye."""
        self.processes[queue].kill()
        self.processes.pop(queue).wait(10)

    def stop(self) -> None:
        for process in self.processes.values():
            _end_group(process)
        self.processes.clear()
        for log in self.logs:
            log.close()

    def log(self, queue: str) -> str:
        path = self.folder / f"{queue}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _spawn(self, queue: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{queue}.log").open("ab")
        self.logs.append(log)
        threads = "4" if queue == "teacher" else "1"
        command = [
            *(sys.executable, "-m", "celery", "--skip-checks", "-A", "lionweb", "worker", "-Q", queue, "-n", f"{queue}@tests"),
            *("--pool", "threads", "--concurrency", threads, "--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]
        return subprocess.Popen(command, cwd=ROOT, env=dict(self.environment), stdout=log, stderr=log, start_new_session=True)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and the training child it may have: a test that is over waits for nobody's job."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(10)
