"""The longest names that are allowed, without a space in them: no page gets wider than its window, and no column is pushed out of view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.db import close_old_connections
from playwright.sync_api import Page

from experiments.models import Budget, Completion, Endpoint, Experiment, Iteration, Job, Run, SeedPool
from tests import make
from tests.browser.test_walk import too_wide
from trainer.config import EndpointConfig
from trainer.plan import Stage, Step

pytestmark = pytest.mark.django_db(transaction=True)

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1440, "height": 900}
REASON = "Endpoint said: " + "e" * 400


def _longest(model: Any, field: str, *, start: str = "") -> str:
    length = model._meta.get_field(field).max_length
    return start + "x" * (length - len(start))


@pytest.fixture
def pages(person) -> list[str]:
    """Every page that shows one of the names: of a finished run, a running one, and one that stopped at a budget."""
    name = _longest(Endpoint, "name", start="e-")
    server = {"base_url": _longest(Endpoint, "base_url", start="https://a.example/"), "model": _longest(Endpoint, "model")}
    endpoint = Endpoint.objects.create(name=name, **server, price_input=1.5, price_output=6, rpm=600)
    owner = person("admin")
    experiment = make.make_experiment(owner, _longest(Experiment, "name", start="experiment-"))
    config = make.make_config()
    roles = {role: replace(getattr(config, role), endpoint=name) for role in ("teacher", "referee", "generator")}
    config = replace(config, **roles, endpoints={name: EndpointConfig(**server)})

    def named(run: Run, start: str) -> Run:
        run.name = _longest(Run, "name", start=start)
        run.save()
        return run

    finished = named(make.make_finished_run(owner, config=config, experiment=experiment), "<b>name</b>")
    make.make_ledger(finished)
    running = named(make.make_run_until(owner, 1, Step.JUDGEMENTS, config=config, experiment=experiment), "running-")
    make.make_job(
        running.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=1500, items_done=9,
        worker=_longest(Job, "worker"),
    )  # fmt: skip
    stopped = named(make.make_run_until(owner, 1, Step.CANDIDATES, config=config, experiment=experiment), "stopped-")
    make.make_ledger(stopped)
    Budget.objects.create(run=stopped, most_calls=9)
    make.make_job(_last(stopped), Stage.GENERATION, Step.CANDIDATES, state="stopped", over_budget=True, reason=REASON, note=REASON)
    failed = named(make.make_run_until(owner, 1, Step.CANDIDATES, config=config, experiment=experiment), "failed-")
    make.make_job(_last(failed), Stage.GENERATION, Step.CANDIDATES, state="failed", reason=REASON, note=REASON)
    Job.objects.filter(state="failed").update(ended_at=failed.created_at)
    SeedPool.objects.update(name=_longest(SeedPool, "name"), licence=_longest(SeedPool, "licence"), source=_longest(SeedPool, "source"))
    runs = [f"/runs/{run.pk}/{page}" for run in (finished, running, stopped, failed) for page in ("", "ledger", "completions")]
    return [
        "/", f"/experiments/{experiment.pk}/", "/jobs/", "/endpoints/", f"/endpoints/{endpoint.pk}/", f"/endpoints/{endpoint.pk}/edit",
        f"/endpoints/{endpoint.pk}/budget", "/pools/", f"/pools/{finished.seed_pool_id}/", *runs, f"/runs/{finished.pk}/instructions",
        f"/runs/{finished.pk}/candidates", f"/runs/{finished.pk}/scores/demo_skills/1/", f"/runs/new?from={finished.pk}",
        f"/instructions/{_item(finished)}/", f"/completions/{Completion.objects.filter(line__run=finished)[0].pk}/",
        f"/compare?runs={finished.pk},{running.pk}&all=1",
    ]  # fmt: skip


def _last(run: Run) -> Iteration:
    return run.iterations.get(number=1)


def _item(run: Run) -> int:
    return run.instructions.filter(iteration__number=1)[0].pk


def test_no_page_scrolls_sideways_on_a_phone(page_of, pages):
    page = page_of("admin")
    page.set_viewport_size(PHONE)
    wide = {url: by for url in pages if (by := _widened(page, url)) > 0}
    assert not wide
    close_old_connections()


def _widened(page: Page, url: str) -> int:
    response = page.goto(url)
    assert response
    assert response.ok, url
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    return too_wide(page)


HIDDEN_COLUMNS = "[...document.querySelectorAll('.table-box')].filter(box => box.scrollWidth > box.clientWidth).length"


def test_no_column_of_a_list_is_out_of_view_on_a_desk(page_of, pages):
    page = page_of("admin")
    page.set_viewport_size(DESK)
    for url in pages[:4]:
        page.goto(url)
        assert page.evaluate(HIDDEN_COLUMNS) == 0, url
    close_old_connections()


def test_the_state_of_a_job_is_in_view_on_a_phone_and_its_reason_is_read_without_scrolling(page_of, pages):
    page = page_of("viewer")
    page.set_viewport_size(PHONE)
    page.goto("/jobs/?state=failed")
    for words in (page.locator("tbody .badge").first, page.locator(".why p").first):
        box = words.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    close_old_connections()
