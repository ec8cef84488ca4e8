"""`make bench`: a JSON object a line for every figure; `make bench ONLY=name` for those of one benchmark.

A figure that misses its bar says so and is no failure. A benchmark that breaks is one: the others are run all the same.
Each benchmark has a process of its own, so that none finds the memory, the settings or the caches of another.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

from tests.bench.report import say

SUBJECTS = (
    *("similarity", "calls", "calls_limited", "calls_outage", "respond", "imitate", "evaluate", "card"),
    *("pages_runs", "pages_instructions", "start", "demo"),
)


def main() -> int:
    only = os.environ.get("ONLY", "").strip()
    if not only:
        return run_each()
    if only not in SUBJECTS:
        print(f"There is no benchmark {only!r}. Known: {', '.join(SUBJECTS)}.", file=sys.stderr)
        return 2
    say(only)
    for figure in importlib.import_module(f"tests.bench.{only}").measure():
        print(figure.line(), flush=True)
    return 0


def run_each() -> int:
    broken = []
    for name in SUBJECTS:
        done = subprocess.run([sys.executable, "-m", "tests.bench"], env={**os.environ, "ONLY": name}, check=False)
        if done.returncode:
            broken.append(name)
    if broken:
        print(f"Broken, with no figures: {', '.join(broken)}.", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
