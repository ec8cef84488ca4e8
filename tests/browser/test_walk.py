"""The path a person walks, in a real browser: launch, watch, reload, filter, read, compare, on a desk and on a phone."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import close_old_connections
from django.utils import timezone
from playwright.sync_api import Page, expect

from experiments.models import Job, Run
from tests import make
from trainer.plan import Stage, Step

pytestmark = pytest.mark.django_db(transaction=True)
PHONE = {"width": 375, "height": 800}


@pytest.fixture
def live_run(person) -> Run:
    """A run in the middle of a discrimination."""
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name="quick-kudu-3", seeds=60)
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=1500, items_done=412)
    return run


def too_wide(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_the_demo_is_launched_from_home_and_its_run_page_opens(page_of):
    page = page_of("member")
    page.goto("/")
    page.get_by_role("link", name="Launch the demo").first.click()
    page.get_by_label("Iterations", exact=True).fill("fifty")
    page.locator("#section-student summary").click()
    page.get_by_label("LoRA rank").fill("0")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_text("0 is too small: the least is 1.", exact=True)).to_be_visible()  # its section is open
    assert too_wide(page) <= 0
    page.get_by_label("LoRA rank").fill("16")
    expect(page.get_by_text("'fifty' is not a whole number.", exact=True)).to_be_visible()
    expect(page.get_by_label("Iterations", exact=True)).to_have_value("fifty")
    page.get_by_label("Iterations", exact=True).fill("1")
    page.get_by_label("Name of the run").fill("my-first-run")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="my-first-run")).to_be_visible()
    expect(page.locator("#run-state")).to_have_text("queued")
    assert Run.objects.get(name="my-first-run").run_config().loop.iterations == 1


def test_the_run_page_follows_the_rows_without_a_reload_and_survives_one(page_of, live_run):
    page = page_of("member")
    page.goto(f"/runs/{live_run.pk}/")
    now = page.locator(".now")
    expect(now).to_contain_text("412 of 1,500 judged")
    page.locator("#jobs summary").click()
    page.evaluate("window.sameDocument = true")
    Job.objects.filter(state="running").update(items_done=900)
    expect(now).to_contain_text("900 of 1,500 judged")
    expect(page.locator("#jobs-details")).to_have_attribute("open", "")
    assert page.evaluate("window.sameDocument")
    page.reload()
    expect(now).to_contain_text("900 of 1,500 judged")


def test_the_page_of_a_failed_run_follows_when_it_is_resumed_on_another_page(page_of, live_run):
    page = page_of("member")
    page.clock.install()
    page.goto(f"/runs/{live_run.pk}/")
    job = Job.objects.get(state="running")
    Job.objects.filter(pk=job.pk).update(state="failed", reason="The endpoint did not answer.", ended_at=job.started_at)
    page.clock.run_for(2_000)
    expect(page.locator("#run-state")).to_have_text("failed")
    expect(page.locator("#stage-1-discrimination")).to_contain_text("The endpoint did not answer.")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    make.make_job(live_run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state="queued", worker="")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(10_000)  # five times; the clock also goes by itself, so that there may have been a second fifth
    assert len(asked) in (1, 2)
    expect(page.locator("#run-state")).to_have_text("running")


def test_the_page_stops_asking_when_the_run_is_finished(page_of, person):
    run = make.make_finished_run(person("member"))
    job = Job.objects.order_by("-id").first()
    assert job
    Job.objects.filter(pk=job.pk).update(state="running", lease_expires_at=timezone.now() + timedelta(minutes=1))
    page = page_of("member")
    page.goto(f"/runs/{run.pk}/")
    expect(page.locator("#run-state")).to_have_text("running")
    Job.objects.filter(pk=job.pk).update(state="finished")
    expect(page.locator("#run-state")).to_have_text("finished")
    expect(page.locator("[data-live]")).to_have_count(0)


def test_a_queued_run_on_home_opens_and_so_do_the_jobs_before_it(page_of, person, live_run):
    other = make.make_run(person("member"), name="first-in-the-queue")
    make.make_job(other.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, state="queued", worker="")
    page = page_of("viewer")
    page.goto("/")
    card = page.locator(".running", has_text="first-in-the-queue")
    card.get_by_role("link", name="1 other job").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    expect(page.locator("[data-total]")).to_have_attribute("data-total", "1")
    page.go_back()
    card.click(position={"x": 5, "y": 5})  # anywhere on the card
    expect(page.get_by_role("heading", name="first-in-the-queue")).to_be_visible()


def test_a_complaint_below_one_box_of_the_budget_moves_neither_box_nor_button(page_of, person):
    run = make.make_run(person("admin"))
    page = page_of("admin")
    page.goto(f"/runs/{run.pk}/ledger")
    page.get_by_label("Most calls").fill("abc")
    page.get_by_role("button", name="Set the budget").click()
    expect(page.get_by_text("Give a whole number of calls")).to_be_visible()
    parts = [page.locator(part).bounding_box() for part in ("#id_most_dollars", "#id_most_calls", ".budget-form .button")]
    tops = [box["y"] for box in parts if box]
    assert len(tops) == 3
    assert max(tops) - min(tops) < 2


SELECT = "getSelection().selectAllChildren(document.querySelector('.now-words'))"
UNSELECT = "getSelection().removeAllRanges()"
HIDE = "Object.defineProperty(document, 'hidden', {value: true, configurable: true})"
SHOW = "delete document.hidden"


@pytest.mark.parametrize(("pause", "go_on"), [(SELECT, UNSELECT), (HIDE, SHOW)], ids=["selection", "hidden tab"])
def test_the_page_does_not_move_under_a_selection_or_in_a_hidden_tab(page_of, live_run, pause, go_on):
    page = page_of("member")
    page.clock.install()
    page.goto(f"/runs/{live_run.pk}/")
    page.evaluate(pause)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    Job.objects.filter(state="running").update(items_done=900)
    page.clock.run_for(10_000)
    assert not [url for url in asked if url.endswith("/live")]
    page.evaluate(go_on)
    page.clock.run_for(2_000)
    expect(page.locator(".now")).to_contain_text("900 of 1,500")


def test_charts_are_drawn_once_and_follow_the_theme(page_of, person):
    run = make.make_finished_run(person("member"), seeds=40)
    page = page_of("viewer")
    page.emulate_media(color_scheme="light")
    page.goto(f"/runs/{run.pk}/")
    for name in ("pool-chart", "score-chart", "loss-chart"):
        expect(page.locator(f"#{name} .main-svg").first).to_be_visible()
    bar = page.locator("#pool-chart .trace.bars").first.locator("path").first
    before = bar.evaluate("path => getComputedStyle(path).fill")
    assert before == "rgb(149, 35, 16)"
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(bar).not_to_have_css("fill", before)
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_a_bar_of_the_chart_opens_its_instructions(page_of, person):
    run = make.make_finished_run(person("member"), seeds=40)
    page = page_of("viewer")
    page.goto(f"/runs/{run.pk}/")
    bar = page.locator("#pool-chart .trace.bars").first.locator("path").first
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url("**/instructions?iteration=1&verdict=hard")


def test_filters_change_the_list_and_the_address_and_back_brings_both_back(page_of, person):
    run = make.make_finished_run(person("member"), seeds=60)
    page = page_of("viewer")
    page.goto(f"/runs/{run.pk}/instructions")
    total = page.locator("[data-total]")
    everything = total.inner_text()
    page.get_by_label("Verdict").select_option("hard")
    page.wait_for_url("**/instructions?verdict=hard")
    expect(total).not_to_have_text(everything)
    page.get_by_label("Search").fill("item00007")
    page.wait_for_url(re.compile("q=item00007"))
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("item00007")
    page.go_back()
    page.wait_for_url(re.compile(r"instructions\?verdict=hard$"))
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()


def test_an_instruction_is_opened_read_and_followed_to_its_parent(page_of, person):
    run = make.make_finished_run(person("member"), seeds=20)
    page = page_of("viewer")
    page.goto(f"/runs/{run.pk}/instructions?made=1&origin=hard")
    page.locator("#list tbody a").first.click()
    expect(page.get_by_role("heading", name="Responses")).to_be_visible()
    expect(page.get_by_role("heading", name="teacher first")).to_be_visible()
    page.get_by_role("link", name=re.compile("^instruction ")).click()
    expect(page.locator(".head .origin")).to_have_text("seed")


def test_hostile_model_text_runs_nothing(page_of, person):
    run = make.make_finished_run(person("member"), name="</script><img src=x onerror='window.hacked=1'>", seeds=20)
    hostile = "</pre><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
    run.instructions.update(text=hostile, input=hostile)
    page = page_of("viewer")
    item = run.instructions.first()
    for url in (
        f"/runs/{run.pk}/",
        f"/runs/{run.pk}/instructions",
        f"/instructions/{item.pk}/",
        f"/compare?runs={run.pk},{_other(person).pk}",
    ):
        page.goto(url)
        page.wait_for_load_state("load")
        assert page.evaluate("window.hacked") is None


def _other(person) -> Run:
    return make.make_finished_run(person("member"), name="other")


def test_two_runs_are_ticked_and_compared(page_of, person):
    owner = person("member")
    first = make.make_finished_run(owner, name="golden-lion-1")
    make.make_finished_run(owner, name="swift-heron-2", draw=2, config=make.make_config(tau=2.0))
    page = page_of("viewer")
    page.goto(f"/experiments/{first.experiment_id}/")
    button = page.get_by_role("button", name="Compare")
    expect(button).to_be_disabled()
    page.get_by_label("Compare golden-lion-1").check()
    page.get_by_label("Compare swift-heron-2").check()
    button.click()
    expect(page.get_by_role("heading", name="Compare 2 runs")).to_be_visible()
    expect(page.get_by_role("cell", name="loop.tau").or_(page.get_by_role("rowheader", name="loop.tau"))).to_be_visible()
    for name in ("scores-demo_skills", "hard-share", "discrepancy"):
        expect(page.locator(f"#{name} .main-svg").first).to_be_visible()


def test_nothing_is_wider_than_a_phone(page_of, person, live_run):
    run = make.make_finished_run(person("admin"), name="a-run-with-quite-a-long-name-for-a-phone-screen-1", seeds=60)
    page = page_of("admin")
    page.set_viewport_size(PHONE)
    item = run.instructions.filter(iteration__number=1).first()
    assert item
    urls = [
        "/", f"/experiments/{run.experiment_id}/", "/runs/new", f"/runs/{run.pk}/", f"/runs/{live_run.pk}/", f"/runs/{run.pk}/instructions",
        f"/runs/{run.pk}/candidates", f"/instructions/{item.pk}/", f"/compare?runs={run.pk},{live_run.pk}", "/pools/", "/pools/import",
        "/endpoints/", "/endpoints/new", "/jobs/", f"/runs/{run.pk}/scores/demo_skills/1/", "/experiments/new", "/nothing",
    ]  # fmt: skip
    for url in urls:
        page.goto(url)
        assert too_wide(page) <= 0, url


def test_the_navigation_unfolds_on_a_phone(page_of):
    page = page_of("viewer")
    page.set_viewport_size(PHONE)
    page.goto("/")
    link = page.get_by_role("link", name="Seed pools")
    expect(link).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    link.click()
    expect(page.get_by_role("heading", name="Seed pools")).to_be_visible()


def test_a_folded_part_opens_by_its_address(page_of, person):
    run = make.make_finished_run(person("member"))
    page: Page = page_of("viewer")
    page.goto(f"/runs/{run.pk}/#config")
    expect(page.get_by_role("rowheader", name="loop.tau")).to_be_visible()
    close_old_connections()
