"""Start the offline teacher as a child process for as long as it is needed."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.demo.knobs import Knobs
from trainer.errors import TeacherUnavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

_ROOT = Path(__file__).parents[2]


class OfflineTeacher:
    """The offline teacher on a free port of this machine, from entering the context to leaving it."""

    def __init__(self, knobs: Knobs | None = None, *, port: int = 0) -> None:
        self.knobs = knobs or Knobs()
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where the server is, for instance http://127.0.0.1:40001."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """The base URL for an OpenAI client."""
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        """Start the server and wait until it is healthy. Raises TeacherUnavailable where it does not start."""
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            _command(self.knobs, self._port), stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        try:
            self._port = self._announced_port()
            self._ask("/health")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stats(self) -> dict[str, Any]:
        """What the server counted so far: see `OfflineTeacherApp.stats`."""
        return self._ask("/stats")

    def begin_outage(self, seconds: int) -> None:
        """Its API answers 503 for so long; 0 ends it."""
        self._ask(f"/outage?seconds={seconds}", method="POST")

    def stop(self) -> None:
        """End the server; nothing happens where it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()

    def _announced_port(self) -> int:
        """The port from the line the server prints once it listens."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(START_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not ready:
            raise TeacherUnavailable(
                f"The offline teacher did not listen within {START_TIMEOUT_S:g} s. Start it again on a quieter machine."
            )
        if not line:
            code = self._process.wait(STOP_TIMEOUT_S)
            raise TeacherUnavailable(f"The offline teacher ended with code {code} before it listened. Its last line on stderr says why.")
        return int(json.loads(line)["port"])

    def _ask(self, path: str, *, method: str = "GET") -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # A proxy in the environment is not for this machine.
        with opener.open(urllib.request.Request(f"{self.url}{path}", method=method), timeout=START_TIMEOUT_S) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


def _command(knobs: Knobs, port: int) -> list[str]:
    return [sys.executable, "-m", "trainer.demo", "serve", f"--port={port}", *knobs.options()]
