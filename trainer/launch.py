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
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import trainer.errors
from trainer.errors import Cancelled, ChildDied, ConfigError, TrainerError
from trainer.jsonl import write_json

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How often should_stop is asked."""

LAST_LINES = 15
"""How much of the child's own stderr goes into the message of a ChildDied."""

KEPT_LINES = 300
"""How much of all stderr is kept to find those lines in: a launcher writes a page of its own when a process of its ends."""

TASK_PREFIX = ".task-"
"""How the folders begin in which tasks lie while they are done."""

ENDINGS = ("finished", "failed", "stopped")

Event = dict[str, Any]

_SIGNAL = re.compile(r"died with <Signals\.\w+: (\d+)>|failed \(exitcode: -(\d+)\)")  # a launcher's words for how a process ended
_TRACEBACK = "Traceback (most recent call last):"
_OF_THE_LAUNCHER = re.compile(r"accelerate[/\\]commands[/\\]launch\.py")
_SUMMARY = "ChildFailedError:"  # after it the launcher has but a table of exit codes
_NOTES = re.compile(r"[WEI]\d{4} [\d:.]+ .*torch[/\\]distributed|The following values were not passed|\t+`--|To avoid this warning")


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
        _run([*launcher, "-m", module, str(path)], path, on_event, should_stop, environment)


def _run(
    arguments: Sequence[str],
    task: Path,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    environment: Mapping[str, str] | None,
) -> None:
    child = _start(arguments, environment)
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)
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
        ending = _relay(child.stdin, events, on_event, should_stop, task)
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
    stdin: IO[str],
    events: queue.SimpleQueue[Event | None],
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    task: Path,
) -> Event | None:
    """Pass events on until the child's last; gives that one, or None when there is none. Meanwhile the task shows signs of life."""
    stopping, next_poll = False, time.monotonic()
    while True:
        if time.monotonic() >= next_poll:
            next_poll = time.monotonic() + POLL_S
            show_life(task)
            if not stopping and should_stop():
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


def show_life(task: Path) -> None:
    """Give a task's file the time of now, by which other machines know that somebody is at it (`trainer.join`)."""
    with suppress(OSError):
        os.utime(task)


def _last_words(returncode: int, last_lines: Sequence[str]) -> str:
    """How the child ended, what to do, and of what it wrote that which may help; all of it goes to the log."""
    told = "\n".join(last_lines)
    log.info("The process that held the student ended. Its last lines:\n%s", told)
    found = _SIGNAL.search(told)
    number = -returncode if returncode < 0 else int(found[1] or found[2]) if found else 0
    if number == signal.SIGKILL:  # comes from outside: nothing the process wrote can say why
        return (
            "The process that held the student was killed by SIGKILL. "
            "If nobody did that, the machine's memory ran out: lower imitation.device_batch_size or imitation.max_length "
            "(while it answers, respond.batch_size), or choose a smaller student."
        )
    how = f"was killed by {signal.Signals(number).name}" if number else f"ended with status {returncode}"
    ours = "\n".join(own_lines(last_lines)[-LAST_LINES:])
    return f"The process that held the student {how}." + (f" Its last lines:\n{ours}" if ours else "")


def own_lines(lines: Sequence[str]) -> list[str]:
    """What the process that held the student wrote itself, without what its launcher says of its end."""
    kept: list[str] = []
    block: list[str] = []  # a traceback under way

    def end_block() -> None:
        if not any(_OF_THE_LAUNCHER.search(line) for line in block):
            kept.extend(block)
        block.clear()

    for line in lines:
        if line.startswith(_TRACEBACK):
            end_block()
        if block or line.startswith(_TRACEBACK):
            block.append(line)
            if len(block) > 1 and not line.startswith(" "):
                end_block()
        elif not _NOTES.match(line):
            kept.append(line)
        if _SUMMARY in line:
            break
    end_block()
    return kept


def _raise_for(ending: Event) -> None:
    if ending["event"] == "stopped":
        raise Cancelled(ending["message"])
    if ending["event"] == "failed":
        error: TrainerError = getattr(trainer.errors, ending["error"], TrainerError)(ending["message"])
        if isinstance(error, ConfigError):
            error.fields = ending.get("fields", {})
        raise error
