"""`make run`: everything in the Procfile on this machine, from one data folder, until Ctrl-C.

`python -m lionweb.local up` is the parent of one `supervisord` (which keeps the processes alive) and of nothing else:

1. one `up` a data folder: a second one says so and ends;
2. what an `up` that was killed left running is found by a mark in its environment, and ended;
3. supervisord starts PostgreSQL; `manage.py prepare` brings the tables up to date; supervisord starts the rest;
4. once the web server answers, the sign-in link is printed;
5. Ctrl-C, SIGTERM or a closed terminal: the processes are asked to end, PostgreSQL last.
"""

import fcntl
import http.client
import os
import shlex
import signal
import socket
import string
import subprocess
import sys
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep, strftime
from typing import Any

import psutil
from django.core.exceptions import ImproperlyConfigured

from lionweb import embedded

ROOT = Path(__file__).resolve().parent.parent
MARK = "LIONWEB_SUPERVISED"
# Where a name of the Procfile's `$NAME` gets its value.
PROCFILE_SETTINGS = ("LIONWEB_BIND", "LIONWEB_PORT", "LIONWEB_OFFLINE_PORT", "LIONWEB_WEB_THREADS", "LIONWEB_TEACHER_THREADS")
STOP_APP_S = 4  # then SIGKILL: nothing is lost by it, a job is taken up again where it was
STOP_POSTGRES_S = 5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CannotStart(Exception):
    """Something the person at the terminal has to change first."""


@dataclass(frozen=True)
class Place:
    """The data folder and what lies in it."""

    data: Path

    @property
    def postgres(self) -> Path:
        return self.data / "postgres"

    @property
    def logs(self) -> Path:
        return self.data / "log"

    @property
    def config(self) -> Path:
        return self.data / "supervisord.conf"

    @property
    def control_socket(self) -> Path:
        return embedded.socket_folder(self.data) / "supervisor.sock"


# What to run ------------------------------------------------------------------------------------------------------------------------


def read_procfile(text: str) -> dict[str, str]:
    """Name and command of each line."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#"))
    return {name.strip(): command.strip() for name, command in pairs}


def supervisor_config(commands: Mapping[str, str], place: Place, *, as_root: bool) -> str:
    """supervisord's own file for the commands. `postgres` starts by itself; the others wait in the group `app` for the tables.

    Its paths are relative to the data folder, where supervisord starts: it fills in % in some of them twice.
    """
    app = [name for name in commands if name != "postgres"]
    head = f"""
        [unix_http_server]
        file = {_quoted(place.control_socket)}
        chmod = 0700
        [rpcinterface:supervisor]
        supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
        [supervisord]
        nodaemon = true
        silent = true
        logfile = log/supervisord.log
        pidfile = supervisord.pid
        childlogdir = log
        {"user = root" if as_root else ""}
        [group:app]
        programs = {",".join(app)}
    """
    programs = (_program(name, command) for name, command in commands.items())
    return "\n".join(line.strip() for part in (head, *programs) for line in part.splitlines() if line.strip()) + "\n"


def _program(name: str, command: str) -> str:
    is_postgres = name == "postgres"
    return f"""
        [program:{name}]
        {"priority = 1" if is_postgres else ""}
        command = {_quoted(command)}
        directory = {_quoted(ROOT)}
        autostart = {"true" if is_postgres else "false"}
        autorestart = true
        startretries = 1000000
        startsecs = 1
        stopsignal = {"INT" if is_postgres else "TERM"}
        stopwaitsecs = {STOP_POSTGRES_S if is_postgres else STOP_APP_S}
        killasgroup = true
        redirect_stderr = true
        stdout_logfile = log/{name}.log
        stdout_logfile_maxbytes = 10MB
        stdout_logfile_backups = 2
    """


def _quoted(value: object) -> str:
    """supervisord reads % as the start of a name of its own."""
    return str(value).replace("%", "%%")


def fill_in(command: str, values: Mapping[str, object]) -> str:
    """A Procfile's `$NAME` by its value; supervisord starts no shell that would do it."""
    return string.Template(command).substitute({name: shlex.quote(str(value)) for name, value in values.items()})


# One at a time ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def only_one(place: Place, url: str) -> Iterator[None]:
    """Holds the data folder. The lock goes with the process, however it ends, so that it is never left behind."""
    with (place.data / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"LionWeb is already running from {place.data}: {url}\nSign in: python manage.py sign_in_link") from None
        yield


def end_leftovers(place: Place) -> int:
    """Ends what still runs from this data folder, and says how many processes that were. PostgreSQL goes last, as its clients need it."""
    marked = marked_processes(place)
    managers = [process for process in marked if _command_has(process, str(place.config))]
    end_processes(managers, signal.SIGTERM, wait_s=STOP_APP_S + STOP_POSTGRES_S + 2)
    ended = len(marked)
    end_processes([process for process in marked if not _is_postgres(process, place)], signal.SIGTERM, wait_s=STOP_APP_S)
    if (postgres := running_postgres(place)) is not None:
        ended += postgres not in marked
        end_processes([postgres], signal.SIGINT, wait_s=STOP_POSTGRES_S)
    end_processes(marked, signal.SIGTERM, wait_s=1)
    return ended


def marked_processes(place: Place) -> list[psutil.Process]:
    """The processes that were started from this data folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(place.data) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def running_postgres(place: Place) -> psutil.Process | None:
    """The data folder's server, by the pid it wrote down: PostgreSQL overwrites the memory in which its mark would be."""
    pid = embedded.server_pid(place.postgres)
    with suppress(psutil.Error):
        process = psutil.Process(pid) if pid else None
        if process is not None and _is_postgres(process, place):
            return process
    return None


def end_processes(processes: list[psutil.Process], first: signal.Signals, *, wait_s: float) -> None:
    """Asks each to end by the signal `first`, and insists after `wait_s` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(first)
    _, alive = psutil.wait_procs(processes, timeout=wait_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=2)


def _is_postgres(process: psutil.Process, place: Place) -> bool:
    return _command_has(process, str(place.postgres)) and _command_has(process, "postgres")


def _command_has(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.Error):
        return any(word in part for part in process.cmdline())
    return False


def check_address(address: str) -> None:
    """Raises CannotStart for a LIONWEB_BIND on which nothing here can listen, whatever the port."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise CannotStart(
                f"LIONWEB_BIND={address} cannot be listened on ({error.strerror}). It must be an IPv4 address of this machine or its host"
                " name, or 0.0.0.0 for all its addresses; IPv6 is for the proxy in front."
            ) from None


def check_port(address: str, port: int, setting: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise CannotStart(
                f"Port {port} cannot be used ({error.strerror}). Set {setting} to another one: {setting}={port + 1} make run"
            ) from None


# Up ---------------------------------------------------------------------------------------------------------------------------------


def up() -> int:
    from lionweb import settings

    place = Place(settings.LIONWEB_DATA)
    place.logs.mkdir(parents=True, exist_ok=True)
    embedded.make_socket_folder(place.data)
    with only_one(place, settings.LIONWEB_URL):
        if ended := end_leftovers(place):
            print(f"Ended {ended} processes that an earlier start had left running.")
        check_address(settings.LIONWEB_BIND)
        check_port(settings.LIONWEB_BIND, settings.LIONWEB_PORT, "LIONWEB_PORT")
        check_port("127.0.0.1", settings.LIONWEB_OFFLINE_PORT, "LIONWEB_OFFLINE_PORT")
        values = {name: getattr(settings, name) for name in PROCFILE_SETTINGS}
        commands = {name: fill_in(command, values) for name, command in read_procfile((ROOT / "Procfile").read_text()).items()}
        if not settings.USES_EMBEDDED_POSTGRES:
            del commands["postgres"]
        place.config.write_text(supervisor_config(commands, place, as_root=os.geteuid() == 0))
        return _run(place, settings.LIONWEB_URL, _health_url(settings.LIONWEB_BIND, settings.LIONWEB_PORT), _environment(place, values))


def _environment(place: Place, values: Mapping[str, object]) -> dict[str, str]:
    """What every process gets: the settings as they were read here, this Python first on the path, and the mark."""
    return {
        **os.environ,
        **{name: str(value) for name, value in values.items()},
        "LIONWEB_DATA": str(place.data),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        MARK: str(place.data),
    }


def _health_url(address: str, port: int) -> str:
    return f"http://{'127.0.0.1' if address == '0.0.0.0' else address}:{port}/health"


def _run(place: Place, url: str, health_url: str, environment: dict[str, str]) -> int:
    print(f"Starting LionWeb. Data: {place.data}   logs: {place.logs}")
    manager = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(place.config)],
        env=environment,
        cwd=place.data,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # or the terminal's Ctrl-C would end all at once, PostgreSQL before those who write to it
    )
    try:
        _stop_on_signals()
        control = _control(place, manager)
        link = _prepare(environment)
        control.startProcess("app:web", False)  # alone, so that the first page need not wait for what the workers import
        if not _wait_for(lambda: _answers(health_url), timeout_s=60, manager=manager):
            print(f"The web server does not answer yet; its log ends with:\n{_last_lines(place.logs / 'web.log')}")
        control.startProcessGroup("app", False)
        print(f"\n  LionWeb is at {url}\n  Sign in (works once, within an hour):\n  {link}\n\n  Ctrl-C stops everything.\n", flush=True)
        return _watch(control, manager, place)
    except KeyboardInterrupt:
        return 0
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # once is enough
        print("\nStopping.", flush=True)
        _stop(manager, place)


def _stop_on_signals() -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def _prepare(environment: dict[str, str]) -> str:
    """Brings the tables up to date and gives the sign-in link. It waits for PostgreSQL, which starts meanwhile."""
    command = [sys.executable, "manage.py", "prepare", "--link", "--skip-checks"]
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CannotStart(f"The database could not be made ready (above is why; PostgreSQL's log is {environment['LIONWEB_DATA']}/log).")
    return done.stdout.strip().splitlines()[-1]


def _control(place: Place, manager: subprocess.Popen[bytes]) -> Any:
    """supervisord's control interface, once it listens. To be asked wakes it, so that it starts PostgreSQL at once."""

    def listens() -> bool:
        with suppress(OSError, http.client.HTTPException):
            return bool(_connect(place).getPID())
        return False

    if not _wait_for(listens, timeout_s=10, manager=manager):
        raise CannotStart(f"The process manager did not start: see {place.logs / 'supervisord.log'}")
    return _connect(place)


def _connect(place: Place) -> Any:
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(serverurl=f"unix://{place.control_socket}")
    return xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor


def _wait_for(condition: Callable[[], bool], *, timeout_s: float, manager: subprocess.Popen[bytes]) -> bool:
    deadline = monotonic() + timeout_s
    while monotonic() < deadline and manager.poll() is None:
        if condition():
            return True
        sleep(0.05)
    return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, http.client.HTTPException):
        return False


def _watch(control: Any, manager: subprocess.Popen[bytes], place: Place) -> int:
    """Says when a process ended and was started again, or cannot be started; ends when the manager itself does."""
    pids: dict[str, int] = {}
    failing: set[str] = set()
    while manager.poll() is None:
        with suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):
            for info in control.getAllProcessInfo():
                name, state = info["name"], info["statename"]
                if state == "RUNNING":
                    if pids.get(name, info["pid"]) != info["pid"]:
                        _say(f"{name} ended and was started again; its log is {place.logs / name}.log")
                    pids[name] = info["pid"]
                    failing.discard(name)
                elif state == "BACKOFF" and name not in failing:
                    failing.add(name)
                    log = _last_lines(place.logs / f"{name}.log")
                    _say(f"{name} ends as soon as it starts, and is tried again; its log ends with:\n{log}")
        sleep(1)
    _say("The process manager was ended by somebody else.")
    return 1


def _say(text: str) -> None:
    print(f"  {strftime('%H:%M:%S')} {text}", flush=True)


def _stop(manager: subprocess.Popen[bytes], place: Place) -> None:
    with suppress(subprocess.TimeoutExpired):
        manager.terminate()
        manager.wait(STOP_APP_S + STOP_POSTGRES_S)
    end_leftovers(place)
    if manager.poll() is None:
        manager.kill()
        manager.wait()


def _last_lines(path: Path, count: int = 8) -> str:
    return "\n".join(f"    {line}" for line in path.read_text(errors="replace").splitlines()[-count:]) if path.exists() else "    (empty)"


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["up"]:
            return up()
        if arguments == ["postgres"]:
            from lionweb import settings

            embedded.run_in_place(Place(settings.LIONWEB_DATA).postgres)
    except (CannotStart, ImproperlyConfigured) as error:
        print(error, file=sys.stderr)
        return 1
    print("usage: python -m lionweb.local up|postgres", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
