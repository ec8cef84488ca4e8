"""Every fault a server has, and workers that are killed: each item ends, nothing is charged twice, the ledger is the server's own count.

LIONWEB_FIRE_ITEMS=10000 makes it as long as docs/log.md tells of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import Count, Sum

from experiments.models import Completion, Job, LedgerLine, PendingCall, Response, Role
from experiments.services import jobs, runs
from experiments.services.pools import import_seed_pool
from experiments.states import JobState
from tests import make, tiny
from tests.stack import Workers, free_port, wait_until
from trainer.demo.knobs import Knobs
from trainer.demo.pool import demo_seed_pool
from trainer.demo.process import OfflineTeacher

pytestmark = pytest.mark.slow

ITEMS = int(os.environ.get("LIONWEB_FIRE_ITEMS", "600"))
FAULTS = Knobs(
    latency_ms=20,
    **dict.fromkeys(("limited_rate", "error_rate", "hang_rate", "reset_rate", "mangle_rate", "garble", "cut_rate"), 0.05),  # type: ignore[arg-type]
)
AT_ONCE = 64


def test_items_under_every_fault_and_two_kills_all_end_and_nothing_is_charged_twice(
    celery_workers: Workers, person: Callable[[Any], User], tmp_path: Path
) -> None:
    celery_workers.kill("gpu")  # the teacher's part alone
    port = free_port()
    seeds = tmp_path / "seeds.json"
    seeds.write_text(json.dumps([{"instruction": i.text, "input": "", "output": ""} for i in demo_seed_pool(7, ITEMS)]))
    tiny_config = tiny.make_config(seeds, port=port)
    endpoint = replace(tiny_config.endpoints["offline"], max_at_once=AT_ONCE, retries=8, timeout_s=2, price_input=0.5, price_output=1.5)
    imitation = replace(tiny_config.imitation, preflight=False)  # which nobody would do
    config = replace(tiny_config, endpoints={"offline": endpoint}, imitation=imitation)
    owner = person("member")
    with OfflineTeacher(FAULTS, port=port) as server:
        pool = import_seed_pool(seeds.read_text(), name="under fire", source=seeds.name)
        run = runs.launch(config, experiment=make.make_experiment(owner), seed_pool=pool, owner=owner)
        responses = Response.objects.filter(instruction__run=run, role=Role.TEACHER)
        for share in (0.3, 0.6):
            wait_until(lambda share=share: _swept(responses.count() > share * ITEMS), timeout_s=600, what=f"{share:.0%} of the responses")  # type: ignore[misc]
            celery_workers.kill("teacher")
            celery_workers.start("teacher")
        step = Job.objects.filter(step="teacher_responses", state=JobState.FINISHED)
        wait_until(lambda: _swept(step.exists()), timeout_s=900, what=f"the end: {_states()}")
        stats = server.stats()
    assert responses.count() == ITEMS
    assert not responses.filter(text="", failure="").exists()
    paid = Completion.objects.aggregate(
        calls=Count("pk"), prompt=Sum("prompt_tokens"), reply=Sum("completion_tokens"), cost=Sum("nanodollars")
    )
    assert (paid["calls"], paid["prompt"], paid["reply"]) == (stats["charged"], stats["prompt_tokens"], stats["completion_tokens"])
    line = LedgerLine.objects.get()
    assert (line.calls, line.prompt_tokens, line.completion_tokens, line.nanodollars) == tuple(paid.values())
    assert PendingCall.objects.count() == 0
    for fault in ("limited", "errors", "hung", "reset", "mangled", "cut"):
        assert stats[fault] > 0, fault
    sent_in_vain = stats["hung"] + stats["reset"] + stats["mangled"]
    assert sent_in_vain <= line.unanswered <= sent_in_vain + 2 * AT_ONCE  # and what was on its way at the kills


def _swept(done: bool) -> bool:
    """Sweep as `manage.py sweep` does. Raises AssertionError where a job has failed: there is nothing more to wait for."""
    jobs.sweep()
    assert not Job.objects.filter(state=JobState.FAILED).exists(), _states()
    return done


def _states() -> list[tuple[str, str, str]]:
    return list(Job.objects.values_list("step", "state", "reason"))
