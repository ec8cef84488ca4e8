"""`make run` as a person has it: the real command with its own data folder and ports, killed and started again."""

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from lionweb import local
from tests.local.process import PROCESSES, LionWeb
from tests.stack import ROOT, wait_until


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
    wait_until(lambda: "postgres ended and was started again" in lionweb.said(), timeout_s=15, what="the terminal to tell of it")

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
