"""The demo run from launch to end: in a shell, and on the web through real workers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from tests import stack
from tests.bench.place import database
from tests.bench.report import Bar, Figure, say
from trainer.config import load_preset
from trainer.demo.process import OfflineTeacher

FIVE_MINUTES = Bar(at_most=300)


def measure() -> Iterator[Figure]:
    say("in a shell")
    yield Figure(name="demo", value=in_a_shell(), unit="s", bar=FIVE_MINUTES)
    say("on the web")
    yield Figure(name="demo_web", value=on_the_web(), unit="s", bar=FIVE_MINUTES)


def in_a_shell() -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trainer", "run", "demo", "--out", str(Path(folder) / "run")]
        started = monotonic()
        subprocess.run(command, cwd=stack.ROOT, stdout=sys.stderr, check=True)
        return monotonic() - started


def on_the_web() -> float:
    """From the launch, as the form does it, to the last step; the workers wait for work when it begins."""
    with database() as data, OfflineTeacher() as teacher:
        import os

        from experiments.management.commands.sign_in_link import ensure_user
        from experiments.models import Experiment
        from experiments.querysets import runs_with_state
        from experiments.services import jobs, runs
        from experiments.services.pools import get_demo_pool
        from experiments.states import RunState

        preset = load_preset("demo")
        config = replace(
            preset, endpoints={name: replace(endpoint, base_url=teacher.base_url) for name, endpoint in preset.endpoints.items()}
        )
        owner = ensure_user("member", role="member")
        experiment = Experiment.objects.create(name="Demo", owner=owner)
        workers = stack.Workers(dict(os.environ, PYTHONUNBUFFERED="1"), data)
        state = ""

        def is_over() -> bool:
            nonlocal state
            jobs.sweep()
            found: Any = runs_with_state().get(pk=run.pk)
            state = found.state
            return state not in (RunState.QUEUED, RunState.RUNNING)

        try:
            workers.start(*stack.QUEUES)
            started = monotonic()
            run = runs.launch(config, experiment=experiment, seed_pool=get_demo_pool(config.seed), owner=owner)
            stack.wait_until(is_over, timeout_s=1800, what="the end of the demo")
            took = monotonic() - started
        finally:
            workers.stop()
    if state != RunState.FINISHED:
        raise RuntimeError(f"The demo ended as {state}.")
    return took
