"""The Referee page and a review, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from experiments.models import Review, Verdict
from tests import make
from tests.browser.test_walk import too_wide
from trainer.plan import Step
from trainer.records import Label

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_slider_splits_anew_and_its_counts_and_bars_open_their_rows(page_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES, seeds=60)
    hard = Verdict.objects.filter(iteration__run=run, discrepancy__gte=3.4).count()
    page = page_of("member")
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"/runs/{run.pk}/referee")
    assert too_wide(page) <= 0
    page.get_by_label("Tau").fill("3.4")
    expect(page.locator("#split-hard")).to_have_text(str(hard))
    page.locator("#open-hard").click()
    page.wait_for_url(re.compile(r"iteration=1&d_from=3.4"))
    expect(page.locator("[data-total]")).to_have_attribute("data-total", str(hard))
    page.goto(f"/runs/{run.pk}/referee")
    bar = page.locator("#d-chart .trace.bars").last.locator("path").first
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url(re.compile(r"iteration=1&d_from=[\d.]+&d_to="))


def test_a_verdict_is_overruled_where_its_responses_are_read(page_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    verdict = Verdict.objects.filter(iteration__run=run, label=Label.HARD).earliest("pk")
    page = page_of("member")
    page.goto(f"/instructions/{verdict.instruction_id}/?iteration=1")
    page.get_by_label("Comment").fill("The student's answer is right.")
    page.get_by_role("button", name="Overrule: easy").click()
    expect(page.get_by_text("You overrule the referee: easy.")).to_be_visible()
    expect(page.locator("#review .comment")).to_have_text("The student's answer is right.")
    page.get_by_role("button", name="Withdraw my review").click()
    expect(page.get_by_text("Nobody has reviewed this verdict yet.")).to_be_visible()
    assert not Review.objects.exists()
