"""The process that holds a student: `python -m trainer.child TASK`, started by `trainer.launch`.

It does the task in the JSON file that its argument names, and writes events to stdout, one JSON object a line. Meanwhile a thread reads
stdin: a line `stop` asks for a graceful end, and the end of the stream means that the parent is gone, whereupon the process ends at once:
no orphan keeps a GPU. Whatever a library prints goes to stderr.

A launcher may start several of them for one imitation: all do the task together, the first one tells, and each ends with its launcher.

Task: {"task": "check" | "imitate" | "respond" | "answer", "config", "iteration", "start": path or null, "folder": where checkpoints go,
"input": a JSONL file, "done": [keys]}.
Events: news (of an imitation), responses, answers, checkpoint, and last one of finished, stopped, failed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import trainer.errors
from trainer.config import stored_config
from trainer.errors import Cancelled, ConfigError, TrainerError
from trainer.jsonl import read_jsonl
from trainer.records import BenchmarkItem, Example, Instruction, Origin, TuningNews, news_as_dict

Emit = Callable[[dict[str, Any]], None]

STOP = "stop"
"""The line on stdin that asks for a graceful end."""

ORPHANED = 3
"""Exit status when the parent is gone; nobody is left to read it but the system's log."""


def main() -> NoReturn:
    """Do the one task that stdin names and end the process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    emit = take_stdout()
    stop = threading.Event()
    if is_first_here():
        threading.Thread(target=watch_parent, args=(read_lines(0), stop), daemon=True).start()
    threading.Thread(target=watch_launcher, args=(os.getppid(),), daemon=True).start()
    ending = outcome(Path(sys.argv[1]).read_text(encoding="utf-8"), emit, stop)
    if is_first() or ending["event"] == "failed":
        emit(ending)
    sys.stderr.flush()
    # Everything is written: the libraries' own teardown would only take time. A failure ends the processes beside this one too.
    os._exit(1 if ending["event"] == "failed" and not is_alone() else 0)


def is_alone() -> bool:
    """Whether no other process does the same task."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first() -> bool:
    """Whether this is the one of all processes of a task that tells."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_here() -> bool:
    """Whether this is the one process of a task on this machine that listens to the parent."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def take_stdout() -> Emit:
    """Keep stdout for events and let everything else that prints write to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event, ensure_ascii=False) + "\n")
        events.flush()

    return emit


def read_lines(descriptor: int) -> Iterator[str]:
    """Lines of a file descriptor without Python's buffer, whose lock a thread that waits would hold while the process ends."""
    rest = b""
    while chunk := os.read(descriptor, 65536):
        *complete, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in complete)


def watch_parent(lines: Iterator[str], stop: threading.Event) -> None:
    """Set `stop` when asked to; end the process at once when the parent is gone."""
    for line in lines:
        if line.strip() == STOP:
            stop.set()
    os._exit(ORPHANED)


def watch_launcher(launcher: int) -> None:
    """End the process at once when whoever started it is gone."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(ORPHANED)


def outcome(line: str, emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Do the task and give its last event."""
    try:
        do_task(json.loads(line), emit, should_stop=stop.is_set)
    except Cancelled as error:
        return {"event": "stopped", "message": str(error)}
    except TrainerError as error:
        fields = error.fields if isinstance(error, ConfigError) else {}
        return {"event": "failed", "error": public_name(error), "message": str(error), "fields": fields}
    return {"event": "finished"}


def public_name(error: TrainerError) -> str:
    """The nearest class of `trainer.errors`, which the parent knows without importing what raised it."""
    names = (kind.__name__ for kind in type(error).__mro__ if vars(trainer.errors).get(kind.__name__) is kind)
    return next(names, TrainerError.__name__)


def do_task(task: dict[str, Any], emit: Emit, *, should_stop: Callable[[], bool]) -> None:
    """One stage's work with the student, told as events. Raises ConfigError for an unknown task."""
    from trainer.student import LocalStudent

    student = LocalStudent(
        stored_config(task["config"]),
        Path(task["folder"]),
        Path(task["start"]) if task["start"] else None,
        iteration=task["iteration"],
        should_stop=should_stop,
        tries_again=False,  # the parent does, with processes that begin anew
    )
    rows = read_jsonl(Path(task["input"]))
    if task["task"] == "check":
        emit({"event": "news", **news_as_dict(student.check())})
    elif task["task"] == "imitate":
        imitate(student, rows, task, emit)
    elif task["task"] == "respond":
        student.respond(
            [read_instruction(row) for row in rows],
            done=frozenset(task.get("done", ())),
            keep=lambda responses: emit({"event": "responses", "responses": [response.as_dict() for response in responses]}),
        )
    elif task["task"] == "answer":
        student.answer(
            [BenchmarkItem(**row) for row in rows],
            done=frozenset(task.get("done", ())),
            keep=lambda answers: emit({"event": "answers", "answers": [[item.key, reply] for item, reply in answers]}),
        )
    else:
        raise ConfigError(f"There is no task {task['task']!r}. The child knows: check, imitate, respond, answer.")


def imitate(student: Any, rows: Sequence[dict[str, Any]], task: dict[str, Any], emit: Emit) -> None:
    """Tune, telling the news and at the end the checkpoint."""

    def tell(news: TuningNews) -> None:
        emit({"event": "news", **news_as_dict(news)})

    examples = [Example(instruction=read_instruction(row["instruction"]), response=row["response"]) for row in rows]
    info = student.imitate(examples, iteration=task["iteration"], tell=tell, use_saved=task.get("use_saved", False))
    if not is_first():
        return
    emit({"event": "checkpoint", "path": str(info.path), "step": info.step, "first_loss": info.first_loss, "last_loss": info.last_loss})


def read_instruction(row: dict[str, Any]) -> Instruction:
    """An Instruction from its JSON form."""
    return Instruction(**{**row, "origin": Origin(row.get("origin", Origin.SEED))})


if __name__ == "__main__":
    main()
