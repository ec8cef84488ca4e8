"""A person asks a checkpoint: the text grows under their eyes, everybody finishes, and the asking ends."""

from __future__ import annotations

import re

import pytest
from django.db import close_old_connections
from playwright.sync_api import Page, expect

from experiments.models import Checkpoint, Question
from experiments.services import playground
from experiments.states import JobState
from tests import make
from tests.speaking import make_speaking_run
from tests.stack import Workers
from trainer.demo.process import OfflineTeacher
from trainer.plan import Stage, Step

pytestmark = pytest.mark.django_db(transaction=True)
SLOW_MS = 60_000


def address_of(checkpoint: Checkpoint) -> str:
    return f"/checkpoints/{checkpoint.pk}/playground"


def test_a_question_is_asked_grows_and_all_speakers_finish(page_of, person, offline_teacher: OfflineTeacher, celery_workers: Workers):
    run = make_speaking_run(person("member"), base_url=offline_teacher.base_url)
    checkpoint = Checkpoint.objects.get(iteration__run=run, iteration__number=2)
    page: Page = page_of("member")
    page.goto(address_of(checkpoint))
    page.get_by_label("Question").fill("reverse: badc")
    page.get_by_label("Temperature").fill("3")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("Must be from 0 to 2.", exact=True)).to_be_visible()
    expect(page.get_by_label("Question")).to_have_value("reverse: badc")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill("1500")
    page.get_by_label("Earlier checkpoint").select_option(index=1)
    page.get_by_label("Base student").check()
    page.get_by_label("Teacher").check()
    page.get_by_role("button", name="Ask", exact=True).click()

    answer = page.locator(".speaker-checkpoint .model-text")
    expect(answer).not_to_be_empty(timeout=SLOW_MS)
    first = answer.inner_text()
    expect(page.locator(".speaker-checkpoint .badge")).to_have_text("running")
    expect(answer).not_to_have_text(first, timeout=SLOW_MS)
    assert len(answer.inner_text()) > len(first)

    expect(page.locator(".speaker-teacher .model-text")).to_have_text("cdab", timeout=SLOW_MS)
    expect(page.locator(".answer .badge")).to_have_count(0, timeout=2 * SLOW_MS)
    numbers = re.compile(r"1,500 tokens · [\d.]+ s · [\d.,]+ tokens/s")
    for speaker in ("checkpoint", "earlier", "base"):
        expect(page.locator(f".speaker-{speaker} .answer-numbers")).to_contain_text(numbers)
    expect(page.locator("[hx-trigger]")).to_have_count(0)
    page.get_by_role("link", name="Playground of iteration 2").click()
    expect(page.locator(".question")).to_have_count(1)
    page.get_by_role("link", name="Ask again").click()
    expect(page.get_by_label("Longest answer")).to_have_value("1500")
    close_old_connections()


def test_an_answer_is_stopped_where_it_is(page_of, person, celery_workers: Workers):
    run = make_speaking_run(person("member"))
    question = playground.ask(
        Checkpoint.objects.get(iteration__run=run, iteration__number=1),
        by=run.owner,
        text="go on and on",
        temperature=0.0,
        max_new_tokens=2000,
        seed=0,
    )
    page: Page = page_of("member")
    page.goto(f"{address_of(question.checkpoint)}/{question.pk}/")
    expect(page.locator(".answer .model-text")).not_to_be_empty(timeout=SLOW_MS)
    page.evaluate("window.sameDocument = true")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer .badge")).to_have_text("stopped", timeout=SLOW_MS)
    expect(page.locator(".answer .model-text")).not_to_be_empty()
    assert page.evaluate("window.sameDocument")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2_500)
    assert asked == []
    close_old_connections()


def test_a_question_behind_a_tuning_is_withdrawn(page_of, person):
    run = make.make_finished_run(person("member"))
    make.make_job(run.iterations.get(number=2), Stage.IMITATION, Step.PREFLIGHT, state=JobState.RUNNING)
    checkpoint = Checkpoint.objects.get(iteration__run=run, iteration__number=1)
    page: Page = page_of("member")
    page.goto(address_of(checkpoint))
    page.get_by_label("Question").fill("Anybody there?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".before")).to_contain_text(f"The gpu worker is busy with run {run.name}: checking the student of iteration 2")
    page.get_by_role("button", name="Withdraw").click()
    expect(page.locator(".answer .badge")).to_have_text("stopped")
    assert Question.objects.get().answers.get().text == ""


def test_what_a_model_says_runs_nothing_and_fits_a_phone(page_of, person):
    run = make.make_finished_run(person("member"))
    checkpoint = Checkpoint.objects.get(iteration__run=run, iteration__number=1)
    hostile = "</pre><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>" + "w" * 500
    question = playground.ask(checkpoint, by=run.owner, text=hostile, temperature=0.7, max_new_tokens=9, seed=0, base=True, teacher=True)
    for answer in question.answers.all():
        playground.keep_said(answer, hostile, tokens=9, seconds=1.0)
    page: Page = page_of("member")
    page.set_viewport_size({"width": 375, "height": 800})
    for path in (address_of(checkpoint), f"{address_of(checkpoint)}/{question.pk}/", f"{address_of(checkpoint)}?again={question.pk}"):
        page.goto(path)
        page.wait_for_load_state("load")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
