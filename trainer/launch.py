"""Start the process that holds a student, relay what it tells, and turn how it ended into a typed error. Imports no torch."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import trainer.errors
from trainer.errors import Cancelled, ChildDied, ConfigError, TrainerError
from trainer.jsonl import write_json

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How often should_stop is asked."""

LAST_LINES = 15
"""How much of the child's stderr goes into the message of a ChildDied."""

TASK_PREFIX = ".task-"
"""How the folders begin in which tasks lie while they are done."""

ENDINGS = ("finished", "failed", "stopped")

Event = dict[str, Any]

_KILLED = re.compile(r"Signals\.SIGKILL|exitcode\s*: -9\b")


def run_child(
    task: dict[str, Any],
    *,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    module: str = "trainer.child",
    launcher: Sequence[str] = (),
    shared: Path | None = None,
) -> None:
    """Do a task in a process of its own, by default one of `trainer.child`; returns when it finished.

    launcher: arguments of Python before `-m module`, for what starts several processes (see `trainer.accelerated`).
    shared: a folder for the task where other machines see it too; None for a temporary one.

    on_event is called in this thread, first with {"event": "started", "pid": n}, then with each event the child tells but its last.
    should_stop is asked about every half second; a True lets the child save what it has. environment: None for a copy of ours.
    Raises the error the child reports, Cancelled when it was stopped, ChildDied when it ended without a word. The child never
    outlives the call, nor this process.
    """
    with tempfile.TemporaryDirectory(prefix=TASK_PREFIX, dir=shared) as folder:
        path = Path(folder) / "task.json"
        write_json(path, task)
        _run([*launcher, "-m", module, str(path)], on_event, should_stop, environment)


def _run(
    arguments: Sequence[str],
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    environment: Mapping[str, str] | None,
) -> None:
    child = _start(arguments, environment)
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    assert child.stdin
    assert child.stdout
    assert child.stderr
    readers = [
        threading.Thread(target=_read_events, args=(child.stdout, events, last_lines), daemon=True),
        threading.Thread(target=_read_errors, args=(child.stderr, last_lines), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        on_event({"event": "started", "pid": child.pid})
        ending = _relay(child.stdin, events, on_event, should_stop)
    finally:
        _end(child)
    if ending is None:
        readers[1].join()
        raise ChildDied(_last_words(child.returncode, last_lines))
    _raise_for(ending)


def _start(arguments: Sequence[str], environment: Mapping[str, str] | None) -> subprocess.Popen[str]:
    """The child, in a session of its own so that a Ctrl-C reaches the parent alone, which then stops it in order."""
    variables = dict(os.environ if environment is None else environment)
    package = str(Path(__file__).resolve().parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (package, variables.get("PYTHONPATH"))))
    # Threads that wait must sleep: spinning ones would fight over the cores with whatever else runs on the machine.
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    variables.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=variables,
        start_new_session=True,
    )


def _read_events(stream: IO[str], events: queue.SimpleQueue[Event | None], last_lines: deque[str]) -> None:
    for line in stream:
        try:
            events.put(json.loads(line))
        except json.JSONDecodeError:  # the end of a line that a kill cut off
            last_lines.append(line.rstrip())
    events.put(None)


def _read_errors(stream: IO[str], last_lines: deque[str]) -> None:
    for line in stream:
        last_lines.append(line.rstrip())
        log.debug("child: %s", line.rstrip())


def _relay(
    stdin: IO[str], events: queue.SimpleQueue[Event | None], on_event: Callable[[Event], None], should_stop: Callable[[], bool]
) -> Event | None:
    """Pass events on until the child's last; gives that one, or None when there is none."""
    stopping, next_poll = False, time.monotonic()
    while True:
        if not stopping and time.monotonic() >= next_poll:
            next_poll = time.monotonic() + POLL_S
            if should_stop():
                stopping = True
                _send(stdin, "stop")
        try:
            event = events.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if event is None or event["event"] in ENDINGS:
            return event
        on_event(event)


def _send(stdin: IO[str], line: str) -> None:
    try:
        stdin.write(line + "\n")
        stdin.flush()
    except BrokenPipeError:
        log.debug("The child ended before it could be told anything.")


def _end(child: subprocess.Popen[str]) -> None:
    """Wait for a child that has told its last event; one that has not (the caller gave up) is killed."""
    assert child.stdin
    try:
        child.stdin.close()  # the end of its stdin ends the child
    except BrokenPipeError:
        log.debug("The child closed its stdin first.")
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # what a launcher started too
        child.wait()


def _last_words(returncode: int, last_lines: deque[str]) -> str:
    told = "\n".join(last_lines)
    number = -returncode if returncode < 0 else signal.SIGKILL if _KILLED.search(told) else 0  # by what a launcher says
    how = f"was killed by {signal.Signals(number).name}" if number else f"ended with status {returncode}"
    advice = "If nobody did that, memory ran out: choose a smaller batch or student." if number == signal.SIGKILL else ""
    return " ".join(filter(None, (f"The process that held the student {how}.", advice))) + (f" Its last lines:\n{told}" if told else "")


def _raise_for(ending: Event) -> None:
    if ending["event"] == "stopped":
        raise Cancelled(ending["message"])
    if ending["event"] == "failed":
        error: TrainerError = getattr(trainer.errors, ending["error"], TrainerError)(ending["message"])
        if isinstance(error, ConfigError):
            error.fields = ending.get("fields", {})
        raise error
