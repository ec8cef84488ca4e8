"""The student in a child process: memory comes back when it ends, and a crash stays there.

Tuning is started by `accelerate launch`, on as many devices as the config and the machine say. Where memory runs out, it is tried once more
with half the examples on a device and twice the accumulation: the same gradient, in smaller pieces.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.accelerated import launcher_of, tune_in_smaller_pieces
from trainer.config import RunConfig
from trainer.jsonl import write_jsonl
from trainer.launch import TASK_PREFIX, run_child
from trainer.records import BenchmarkItem, Example, Instruction, Preflight, Record, Response, TuningNews, news_from_dict
from trainer.roles import CheckpointInfo

INPUT_PREFIX = ".input-"
"""How the folders begin in which the records of a task lie while it is done."""


class ChildStudent:
    """Implements `roles.Student`: each call starts a child, relays what it reports and raises what went wrong there."""

    def __init__(
        self, config: RunConfig, *, iteration: int, start: Path | None, folder: Path, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._config = config
        self._iteration = iteration
        self._start = start
        self._folder = folder
        self._should_stop = should_stop

    def check(self) -> Preflight:
        told: list[TuningNews] = []

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "news":
                told.append(news_from_dict({k: v for k, v in event.items() if k != "event"}))

        self._run("check", (), on_event)
        return next(news for news in told if isinstance(news, Preflight))

    def imitate(
        self, examples: Sequence[Example], *, iteration: int, tell: Callable[[TuningNews], None], use_saved: bool = False
    ) -> CheckpointInfo:
        """See `trainer.imitation.imitate`."""
        return tune_in_smaller_pieces(self._config, tell, lambda config, tell: self._imitate(config, examples, tell, use_saved=use_saved))

    def _imitate(
        self, config: RunConfig, examples: Sequence[Example], tell: Callable[[TuningNews], None], *, use_saved: bool
    ) -> CheckpointInfo:
        made: list[CheckpointInfo] = []

        def on_event(event: dict[str, Any]) -> None:
            values = {k: v for k, v in event.items() if k != "event"}
            if event["event"] == "news":
                tell(news_from_dict(values))
            elif event["event"] == "checkpoint":
                made.append(CheckpointInfo(**{**values, "path": Path(values["path"])}))

        launcher = () if use_saved else launcher_of(config)  # one process writes a save down as a checkpoint
        self._run("imitate", examples, on_event, config=config, launcher=launcher, use_saved=use_saved)
        return made[-1]

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "responses":
                keep([Response(**response) for response in event["responses"]])

        self._run("respond", instructions, on_event, done=done)

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        by_key = {item.key: item for item in items}

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "answers":
                keep([(by_key[key], reply) for key, reply in event["answers"]])

        self._run("answer", items, on_event, done=done)

    def _run(
        self,
        task: str,
        records: Sequence[Record],
        on_event: Callable[[dict[str, Any]], None],
        *,
        done: frozenset[str] = frozenset(),
        config: RunConfig | None = None,
        launcher: Sequence[str] = (),
        **options: Any,
    ) -> None:
        shared = self._shared_folder() if launcher else None
        with tempfile.TemporaryDirectory(prefix=INPUT_PREFIX, dir=shared) as folder:
            source = Path(folder) / "input.jsonl"
            write_jsonl(source, (record.as_dict() for record in records))
            run_child(
                {
                    "task": task,
                    "config": (config or self._config).as_dict(),
                    "iteration": self._iteration,
                    "start": str(self._start) if self._start else None,
                    "folder": str(self._folder),
                    "input": str(source),
                    "done": sorted(done),
                    **options,
                },
                on_event=on_event,
                should_stop=self._should_stop,
                launcher=launcher,
                shared=shared,
            )

    def _shared_folder(self) -> Path:
        """Where other machines that tune along find the task: beside the checkpoints, without what a kill left there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in (*self._folder.glob(f"{TASK_PREFIX}*"), *self._folder.glob(f"{INPUT_PREFIX}*")):
            shutil.rmtree(left, ignore_errors=True)
        return self._folder
