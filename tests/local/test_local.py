"""`make run` as a person has it: the real command with its own data folder and ports, killed and started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lionweb import local
from tests.stack import ROOT, free_port, make_data_folder, wait_until

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


@pytest.fixture
def lionweb() -> Iterator[LionWeb]:
    it = LionWeb(make_data_folder())
    try:
        yield it
    finally:
        if it.process is not None and it.process.poll() is None:
            it.process.kill()
            it.process.wait()
        local.end_leftovers(it.place)
        shutil.rmtree(it.place.data)


@pytest.mark.slow
def test_it_starts_restarts_what_was_killed_and_ends_whole(lionweb: LionWeb) -> None:
    lionweb.start()
    assert f"http://127.0.0.1:{lionweb.port}/sign-in/link/?sesame=" in lionweb.said()
    assert lionweb.is_healthy()
    wait_until(lionweb.all_run, timeout_s=30, what="every process")

    for name in ("teacher", "gpu", "sweep", "web", "postgres"):
        lionweb.kill(name)
    wait_until(lionweb.is_healthy, timeout_s=15, what="the web server after PostgreSQL was killed")
    wait_until(lionweb.all_run, timeout_s=15, what="every process again")
    assert "postgres ended and was started again" in lionweb.said()

    second = lionweb.try_to_start()
    assert second.returncode == 1
    assert f"already running from {lionweb.place.data}: http://127.0.0.1:{lionweb.port}" in second.stderr

    lionweb.press_ctrl_c()
    assert lionweb.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["up", "manager"])
def test_after_a_kill_the_next_start_ends_what_was_left_and_goes_on(lionweb: LionWeb, victim: str) -> None:
    lionweb.start()
    assert lionweb.process is not None
    secret = (lionweb.place.data / "secret_key").read_text()
    manager = int((lionweb.place.data / "supervisord.pid").read_text())
    before = {process.pid for process in lionweb.leftovers()}
    os.kill(manager if victim == "manager" else lionweb.process.pid, signal.SIGKILL)
    lionweb.process.wait(20)

    lionweb.start()

    assert lionweb.is_healthy()
    assert {process.pid for process in lionweb.leftovers()}.isdisjoint(before)
    assert (lionweb.place.data / "secret_key").read_text() == secret
    assert not any(psutil.pid_exists(pid) for pid in before)
    lionweb.press_ctrl_c()
    assert lionweb.leftovers() == []


def test_a_taken_port_is_named_with_the_setting_that_changes_it(lionweb: LionWeb) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", lionweb.port))
        taken.listen()
        refused = lionweb.try_to_start()

    assert refused.returncode == 1
    assert f"Port {lionweb.port} cannot be used" in refused.stderr
    assert "LIONWEB_PORT" in refused.stderr
    assert lionweb.leftovers() == []


def test_a_setting_that_makes_no_sense_is_named(lionweb: LionWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONWEB_LEASE_S", "soon")

    refused = lionweb.try_to_start()

    assert refused.returncode == 1
    assert refused.stderr.strip() == "LIONWEB_LEASE_S must be a number, not 'soon'"


def test_the_procfile_is_the_list_of_processes() -> None:
    commands = local.read_procfile((ROOT / "Procfile").read_text())

    assert tuple(commands) == PROCESSES
    for command in commands.values():
        local.fill_in(command, dict.fromkeys(local.PROCFILE_SETTINGS, "x"))


def test_percent_signs_and_blanks_reach_the_process_as_they_are(tmp_path: Path) -> None:
    command = local.fill_in("serve $LIONWEB_BIND -n gpu@%h", {"LIONWEB_BIND": "a b"})
    config = local.supervisor_config({"postgres": "p", "web": command}, local.Place(tmp_path), as_root=False)

    assert command == "serve 'a b' -n gpu@%h"
    assert "command = serve 'a b' -n gpu@%%h\n" in config
    assert "user = root" not in config
