"""`python -m trainer.join FOLDER --config-file FILE`: this machine tunes along with the one where the gpu worker runs.

FOLDER is the data folder that all machines share. Whenever the worker starts an imitation there, its launcher waits for as many machines
as its accelerate config says; this command starts the same launcher here, with FILE, whose `machine_rank` is this machine's.
A task that somebody is at shows it by the time of its file, which moves twice a second; one that a crash left behind does not.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.launch import TASK_PREFIX

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.join", description="Tune along with the machine of the gpu worker.")
    parser.add_argument("folder", type=Path, help="the data folder that all machines share")
    parser.add_argument("--config-file", type=Path, required=True, help="what `accelerate config` wrote on this machine")
    parser.add_argument("--once", action="store_true", help="end after one imitation")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for path in (chosen.folder, chosen.config_file):
        if not path.exists():
            print(f"There is no {path}. Name the shared data folder and the file that `accelerate config` wrote.", file=sys.stderr)
            return 2
    log.info("Waiting for imitations in %s.", chosen.folder)
    for task in new_tasks(chosen.folder):
        status = tune_along(task, chosen.config_file)
        log.info("%s ended with status %d.", task, status)
        if chosen.once:
            return status
    return 0


def new_tasks(folder: Path) -> Iterator[Path]:
    """Every task below the folder that somebody is at, once: those that wait already, and those that come."""
    seen: dict[Path, int] = {}
    taken: set[Path] = set()
    while True:
        for task in find_tasks(folder):
            shown = life_of(task)
            # Two looks at the file's own time: no clock of another machine is compared with ours.
            if task not in taken and shown and shown != seen.setdefault(task, shown):
                taken.add(task)
                yield task
        time.sleep(LOOK_EVERY_S)


def life_of(task: Path) -> int:
    """When a task last showed that somebody is at it, in ns of the file system's clock; 0 where it is gone."""
    try:
        return task.stat().st_mtime_ns
    except OSError:
        return 0


def find_tasks(folder: Path) -> list[Path]:
    """Tasks of imitations beside the checkpoints of their run: of a data folder's runs, or of a run's own folder."""
    return sorted(task for runs in ("runs/*/", "") for task in folder.glob(f"{runs}checkpoints/{TASK_PREFIX}*/task.json"))


def tune_along(task: Path, config_file: Path) -> int:
    """Start this machine's processes of a task, and wait for their end; gives the launcher's status."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file), "-m", "trainer.child", str(task)]
    log.info("Tuning along: %s", task)
    # Their stdin stays open for as long as this command lives, and their news are the first machine's to tell.
    with subprocess.Popen(launch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
