"""`python -m trainer run CONFIG.toml --out FOLDER`: the whole loop in a shell, on JSONL files."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.accelerated import wants_several
from trainer.child_student import ChildStudent
from trainer.config import OFFLINE_URL, PRESETS, RunConfig, config_from_dict, load_config, preset_names
from trainer.contamination import HeldOut
from trainer.endpoints import EndpointRoles, open_roles
from trainer.errors import Cancelled, ConfigError, TrainerError
from trainer.folder import FolderBook, locked
from trainer.held_out import held_out_items
from trainer.jsonl import write_json
from trainer.loop import distil
from trainer.plan import GPU_STEPS, Planned
from trainer.prices import NANODOLLARS
from trainer.records import Instruction
from trainer.roles import Student
from trainer.served_student import with_server
from trainer.summary import summarise


class CtrlC:
    """What Ctrl-C does. While the student is at work the first one asks for a stop, so that a tuning saves first; a second ends at once.

    While endpoints are asked it is the loop of events that takes it, and keeps the answers that are on their way.
    """

    def __init__(self) -> None:
        self._asked = False
        self._process = os.getpid()

    def asked(self) -> bool:
        return self._asked

    def begin(self, planned: Planned) -> None:
        """Listen as the step needs it. Raises Cancelled where a stop was asked for at the end of the one before."""
        # asyncio takes Ctrl-C over from Python's own handler and from no other.
        signal.signal(signal.SIGINT, self._ask if planned.step in GPU_STEPS else signal.default_int_handler)
        if self._asked:
            raise Cancelled("Stopped between two steps.")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            signal.default_int_handler(number, frame)
        self._asked = True
        if os.getpid() == self._process:  # processes that prepare batches are interrupted too, and go on
            with suppress(OSError):  # whoever read us may have gone by the same Ctrl-C; and a handler may come in the middle of a print
                os.write(2, b"  Stopping; a tuning saves first. Ctrl-C again ends at once.\n")


class ShellDesk:
    """What the steps work with on the command line: endpoints, and a student in this very process."""

    def __init__(self, config: RunConfig, book: FolderBook, *, offline_url: str, should_stop: Callable[[], bool] = lambda: False) -> None:
        """should_stop: asked while the student is at work."""
        self._config = config
        self._book = book
        self._offline_url = offline_url
        self._should_stop = should_stop
        self.from_store = 0

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[EndpointRoles]:
        async with open_roles(self._config, self._book.calls, offline_url=self._offline_url, on_pause=self._say_pause) as roles:
            try:
                yield roles
            finally:
                self.from_store += sum(endpoint.from_store for endpoint in roles.endpoints.values())

    def _say_pause(self, text: str) -> None:
        print(f"  {text or 'It answers again.'}", flush=True)

    def roles(self) -> AbstractAsyncContextManager[EndpointRoles]:
        return self._counted()

    def student(self, *, iteration: int, start: Path | None) -> Student:
        from trainer.student import LocalStudent  # slow to import: torch

        kind = ChildStudent if wants_several(self._config) else LocalStudent
        folder, should_stop = self._book.checkpoint_folder(iteration), self._should_stop
        here = kind(self._config, folder=folder, start=start, iteration=iteration, should_stop=should_stop)
        return with_server(self._config, here, iteration=iteration, start=start, should_stop=should_stop)

    @property
    def use_saved(self) -> bool:
        return False

    def held_out(self) -> HeldOut:
        return HeldOut(held_out_items(self._config))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)


def read_seeds(config: RunConfig) -> Sequence[Instruction]:
    """The seed pool a config names."""
    if config.seed_pool == "demo":
        from trainer.demo.pool import demo_seed_pool

        return demo_seed_pool(config.seed)
    from trainer.seed_pools import read_seed_pool

    return read_seed_pool(Path(config.seed_pool)).instructions


@contextmanager
def offline_teacher(config: RunConfig) -> Iterator[str]:
    """The address of the offline teacher, started for the time of the run where the config asks for it; else nothing."""
    if all(endpoint.base_url != OFFLINE_URL for endpoint in config.endpoints.values()):
        yield ""
        return
    from trainer.demo.process import OfflineTeacher

    with OfflineTeacher() as offline:
        yield offline.base_url


def run(
    config: RunConfig, folder: Path, *, most_calls: int | None = None, most_dollars: float | None = None, ctrl_c: CtrlC | None = None
) -> dict[str, Any]:
    """The whole loop in a folder; gives the summary that it also leaves there, after every iteration.

    ctrl_c: hears of each step that begins, and says whether to stop; None leaves Ctrl-C as it is.
    """
    earlier = _earlier_summary(folder)
    started = time.monotonic()
    most = None if most_dollars is None else round(most_dollars * NANODOLLARS)
    seeds = read_seeds(config)
    with (
        locked(folder),
        offline_teacher(config) as offline_url,
        closing(FolderBook(folder, config, seeds, most_calls=most_calls, most_nanodollars=most)) as book,
    ):
        desk = ShellDesk(config, book, offline_url=offline_url, should_stop=ctrl_c.asked if ctrl_c else lambda: False)

        def summary() -> dict[str, Any]:
            written = summarise(
                book,
                from_store=earlier["completions"]["from_store"] + desk.from_store,
                wall_s=earlier["wall_s"] + time.monotonic() - started,
            )
            write_json(folder / "summary.json", written)
            return written

        def before(planned: Planned) -> None:
            summary()
            if ctrl_c:
                ctrl_c.begin(planned)
            print(f"iteration {planned.iteration}  {planned.stage}: {planned.step}", flush=True)

        try:
            distil(book, desk, config, before=before)
        finally:
            last = summary()
    return last


def _earlier_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if path.exists():
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return earlier
    return {"completions": {"from_store": 0}, "wall_s": 0.0}


def find_config(name: str, *, seed: int | None, settings: Sequence[str]) -> RunConfig:
    """A config by path or preset name, with `--set section.name=value` on top. Raises ConfigError."""
    path = PRESETS / f"{name}.toml" if name in preset_names() else Path(name)
    data = load_config(path, seed=seed).as_dict()
    for text in settings:
        dotted, separator, value = text.partition("=")
        *sections, last = dotted.split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {}) if isinstance(table, dict) else table
        if not separator or not isinstance(table, dict):
            raise ConfigError(f"--set takes section.name=value, not {text!r}.")
        table[last] = _value(value)
    return config_from_dict(data)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _print_table(summary: dict[str, Any]) -> None:
    print(f"\n{'iteration':>9} {'train':>6} {'cache':>6} {'hard':>6} {'easy':>6} {'quarantined':>11}  benchmarks")
    for row in summary["iterations"]:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row["benchmarks"].items())
        numbers = (row[name] for name in ("iteration", "train_pool", "cache_pool", "hard", "easy", "quarantined"))
        print(" ".join(f"{number:>{width}}" for number, width in zip(numbers, (9, 6, 6, 6, 6, 11), strict=True)) + f"  {scores}")
    calls = summary["completions"]
    cost = f" (${calls['dollars']:,.2f})" if calls["dollars"] else ""
    print(f"{calls['asked']} calls paid{cost}, {calls['from_store']} answered from the store, {summary['wall_s']} s")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run the loop, or go on with it")
    runner.add_argument("config", help=f"a TOML file, or a preset: {', '.join(preset_names())}")
    runner.add_argument("--out", type=Path, help="folder for everything the run leaves (default: runs/NAME-seed-N)")
    runner.add_argument("--seed", type=int, help="instead of the config's")
    runner.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="another value for a setting, e.g. loop.parents=uniform"
    )
    runner.add_argument("--most-calls", type=int, help="budget: stop before the run has made more calls than this")
    runner.add_argument("--most-dollars", type=float, help="budget: stop before the run can have cost more than this")
    options = parser.parse_args(arguments)
    # Threads that spin while they wait make a tuning many times slower where other work shares the cores (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ctrl-C lets the calls under way be answered and kept, and a tuning save; so does a SIGTERM. A shell starts what is in the
    # background with Ctrl-C ignored, so the handler is set here in any case.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        config = find_config(options.config, seed=options.seed, settings=options.set)
        folder = options.out or Path("runs") / f"{config.name}-seed-{config.seed}"
        _print_table(run(config, folder, most_calls=options.most_calls, most_dollars=options.most_dollars, ctrl_c=CtrlC()))
    except (KeyboardInterrupt, Cancelled) as stopped:
        print(f"{str(stopped) or 'Stopped.'} The same command goes on from here.", file=sys.stderr)
        return 130
    except TrainerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
