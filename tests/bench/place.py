"""A PostgreSQL of a benchmark's own, as durable as that of `make run`, with the tables in it; and the web server on it."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from lionweb import embedded
from tests import stack


@contextmanager
def database() -> Iterator[Path]:
    """Django on an empty database for the block; gives the data folder. Before it, nothing may have read the settings."""
    data = stack.make_data_folder()
    try:
        with embedded.running(data / "postgres") as url:
            os.environ.update(
                DATABASE_URL=url,
                CELERY_BROKER_URL="sqla+postgresql+psycopg" + url[url.index("://") :],
                DJANGO_SETTINGS_MODULE="lionweb.settings",
                LIONWEB_DATA=str(data),
                SECRET_KEY="for the benchmarks",
            )
            import django

            django.setup()
            from django.core.management import call_command
            from django.db import connections

            from lionweb import broker

            call_command("prepare", "--skip-checks")
            yield data
            broker.close_connections()
            connections.close_all()
    finally:
        shutil.rmtree(data, ignore_errors=True)


class Pages:
    """The web server as the Procfile starts it, and one signed-in person with one connection to it."""

    def __init__(self, port: int, session: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {"Cookie": f"sessionid={session}"}

    def seconds(self, path: str) -> float:
        """How long a page takes from the request to the last byte. Raises RuntimeError for any answer but 200."""
        started = monotonic()
        self._connection.request("GET", path, headers=self._headers)
        response = self._connection.getresponse()
        response.read()
        took = monotonic() - started
        if response.status != 200:
            raise RuntimeError(f"GET {path} answered {response.status}")
        return took


@contextmanager
def web_server(data: Path, session: str) -> Iterator[Pages]:
    port = stack.free_port()
    command = [sys.executable, "-m", "gunicorn", "lionweb.wsgi", "--no-control-socket", "--bind", f"127.0.0.1:{port}"]
    with (data / "web.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--worker-class", "gthread", "--threads", "8", "--timeout", "120"], cwd=stack.ROOT, stdout=log, stderr=log
        )
        try:
            stack.wait_until(lambda: stack.accepts_connections(port), timeout_s=30, what="the web server")
            yield Pages(port, session)
        finally:
            process.terminate()
            process.wait(20)
