"""`make run` as a person has it: the real command with its own data folder and ports."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil

from lionweb import local
from tests.stack import ROOT, free_port, wait_until

PROCESSES = ("postgres", "web", "teacher", "gpu", "sweep", "offline")


class LionWeb:
    """One data folder, and the command that runs LionWeb from it."""

    def __init__(self, data: Path) -> None:
        self.place = local.Place(data)
        self.port = free_port()
        self.output = data / "terminal.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        ours = {"LIONWEB_DATA": str(self.place.data), "LIONWEB_PORT": str(self.port), "LIONWEB_OFFLINE_PORT": str(free_port())}
        theirs = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY"}}
        return {**theirs, **ours, "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        with self.output.open("wb") as output:
            command = [sys.executable, "-m", "lionweb.local", "up"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, start_new_session=True)
        wait_until(lambda: "Ctrl-C" in self.said() or self.has_ended(), timeout_s=60, what="the sign-in link")
        assert not self.has_ended(), self.said()

    def try_to_start(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lionweb.local", "up"]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60, check=False)

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def press_ctrl_c(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(15)

    def is_healthy(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as response:
            return bool(json.load(response)["ok"])
        return False

    def processes(self) -> dict[str, int]:
        """Name and pid of everything the process manager keeps running."""
        with suppress(OSError):
            infos = local._connect(self.place).getAllProcessInfo()
            return {info["name"]: info["pid"] for info in infos if info["statename"] == "RUNNING"}
        return {}

    def all_run(self) -> bool:
        return set(self.processes()) == set(PROCESSES)

    def kill(self, name: str) -> None:
        """Kills one process, and waits until another has taken its place."""
        pid = self.processes()[name]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.processes().get(name, pid) != pid, timeout_s=10, what=f"a new {name}")

    def leftovers(self) -> list[psutil.Process]:
        postgres = local.running_postgres(self.place)
        return [*local.marked_processes(self.place), *([postgres] if postgres else [])]
