"""The run page of an imitation: what it takes, what the student reads, how it goes, and what can be done with the save it left."""

import json
import math
import re
from datetime import timedelta

import pytest
from django.db import close_old_connections
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from experiments.charts import ema, imitation_charts
from experiments.imitation_board import PreflightView
from experiments.models import Imitation, Job, Metric
from experiments.querysets_curves import ENDS, MOST_POINTS, logged_steps
from experiments.templatetags.lionweb import NONE
from tests import make
from tests.web.pages import asks_the_same_of, body, figure, text_of
from trainer.plan import Stage, Step

GIB = 2**30


@pytest.fixture
def run(person):
    """A run whose first tuning is next."""
    return make.make_run_until(person("member"), 0, Step.TUNING)


@pytest.fixture
def iteration(run):
    return run.iterations.get(number=0)


@pytest.fixture
def shown(client_of, run):
    """The text of the run's page, as a viewer reads it."""
    return lambda: text_of(body(client_of("viewer").get(f"/runs/{run.pk}/")))


def tuning(iteration, *, steps=40, losses=(), state="running", **values):
    job = make.make_job(iteration, Stage.IMITATION, Step.TUNING, state=state)
    make.make_metrics(job, losses, steps=steps, **values)
    return job


# Before it starts


def test_a_preflight_says_what_the_tuning_takes_and_that_it_fits(iteration, shown):
    found = make.make_preflight(
        model="llama-7b", method="lora", precision="bf16", parameters=6_738_000_000, trainable=40_000_000, device="H100", processes=8,
        weights=14 * GIB, gradients=GIB, optimizer=2 * GIB, activations=20 * GIB, memory=79 * GIB, disk_needed=30 * GIB,
        disk_free=900 * GIB, examples=69_988, cut=412, left_out=12, steps=1_640, seconds=5400.0,
    )  # fmt: skip
    make.make_imitation(iteration, found=found)
    page = shown()
    for words in (
        "Before it starts fits",
        "llama-7b",
        "6.74 G, 40 M tuned (0.6 %)",
        "lora, bf16",
        "8 \N{MULTIPLICATION SIGN} H100",
        "69,988, 412 cut , 12 left out",
        "1,640, about 1 h 30 min",
        "30.00 GiB needed, 900.00 GiB free",
        "Memory of each process about 37.00 GiB of 79.00 GiB",
        "weights 14.00 GiB",
        "gradients 1.00 GiB",
        "optimizer 2.00 GiB",
        "activations 20.00 GiB estimate",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        ({"weights": 8 * GIB, "memory": 10 * GIB}, "fits"),
        ({"weights": 8 * GIB, "activations": 2 * GIB, "memory": 10 * GIB}, "tight"),
        ({"weights": 8 * GIB, "activations": 9 * GIB, "memory": 10 * GIB}, "tight"),
        ({"weights": 11 * GIB, "memory": 10 * GIB}, "does not fit"),
        ({"disk_needed": 10 * GIB, "disk_free": 9 * GIB}, "does not fit"),
    ],
)
def test_it_fits_unless_what_is_counted_is_too_much(values, fit):
    assert PreflightView(make.make_preflight(**values)).fit == fit


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_the_parts_of_the_memory_bar_never_run_out_of_it(weights, activations, memory):
    view = PreflightView(make.make_preflight(weights=weights, activations=activations, memory=memory))
    assert sum(part.percent for part in view.parts) <= 100.0001
    assert view.device_percent is None or 0 <= view.device_percent <= 100


def test_problems_are_a_notice(iteration, shown):
    make.make_imitation(iteration, found=make.make_preflight(problems=("Memory is <tight>.", "The disk has 1 MiB free.")))
    assert "Memory is <tight>. The disk has 1 MiB free." in shown()


def test_a_preflight_without_examples_says_when_they_are_counted(iteration, shown):
    assert "Examples counted once the teacher has answered" in shown()


@pytest.mark.parametrize("kept", [{"of_another": "version"}, {"model": "half"}])
def test_a_preflight_of_another_version_breaks_no_page(iteration, client_of, run, kept):
    Imitation.objects.update_or_create(iteration=iteration, defaults={"preflight": kept, "first_batch": {"examples": [{"tokens": 3}]}})
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    assert "Before it starts" not in page
    assert "first-batch" not in page


# The first batch


def test_a_batch_larger_than_the_pool_says_that_examples_repeat(iteration, client_of, run):
    make.make_imitation(iteration, found=make.make_preflight(**{**make.COUNTED, "examples": 5}))
    assert "8 places, filled from 5 examples, some more than once; 1 shown." in text_of(body(client_of("viewer").get(f"/runs/{run.pk}/")))


def test_the_first_batch_shows_what_is_learnt_and_what_is_only_read_letter_for_letter(iteration, client_of, run):
    pieces = (("<s>[INST] <script>alert(1)</script>\n\n  two  spaces [/INST]", False), ("&amp; yes\t</s>", True))
    make.make_imitation(iteration, batch=make.make_first_batch(*pieces))
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    assert '<span class="piece masked">&lt;s&gt;[INST] &lt;script&gt;alert(1)&lt;/script&gt;\n\n  two  spaces [/INST]</span>' in page
    assert '<span class="piece learnt">&amp;amp; yes\t&lt;/s&gt;</span>' in page
    assert "<script>alert" not in page
    words = text_of(page)
    assert "1 of its 8 examples." in words
    assert "31 tokens, 9 learnt" in words
    assert "read only: <s>[INST]" in words  # said in words too, for whoever sees no colour


# While it runs


def test_the_last_logged_step_stands_in_numbers(iteration, shown):
    make.make_imitation(iteration)
    tuning(iteration, losses=[2.5, 1.23456], first=411, steps=1170, learning_rate=1.5e-05, tokens_per_s=8123.0, gpu_percent=93.4)
    page = shown()
    for words in (
        "Step 412 of 1,170", "Loss 1.235", "Learning rate 1.5e-05", "Gradient norm 1.25", "Response tokens / s 8,123",
        "Peak memory 768 MiB", "GPU busy 93 %",
    ):  # fmt: skip
        assert words in page


def test_what_nobody_measured_is_a_dash(iteration, shown):
    tuning(iteration, losses=[2.5], grad_norm=None, tokens_per_s=None, memory_gib=None)
    page = shown()
    for name in ("Gradient norm", "Response tokens / s", "Peak memory", "GPU busy", "Time left"):
        assert f"{name} {NONE}" in page


def test_the_time_left_leaves_out_how_long_the_start_took(iteration, shown):
    """100 s since the job began, of which nearly all went into loading: its own speed says 1 step a second."""
    make.make_imitation(iteration)  # 100 response tokens a step
    tuning(iteration, losses=[2.5, 2.4, 2.3], first=1, steps=400, tokens_per_s=100.0)
    page = shown()
    assert "3 of 400 steps 1.0 / s 6 min 37 s left" in page
    assert "Time left 6 min 37 s" in page


def test_the_time_left_after_a_resume_counts_its_own_steps_alone(iteration, shown):
    tuning(iteration, losses=[2.0] * 200, steps=400, state="stopped")
    tuning(iteration, losses=[1.9], first=201, steps=400, tokens_per_s=None)
    assert "201 of 400 steps" in shown()
    assert f"Time left {NONE}" in shown()  # one logged step tells no speed
    tuned = Job.objects.get(state="running")
    make.make_metrics(tuned, [1.8] * 50, first=202, steps=400, tokens_per_s=None)
    assert re.search(r"251 of 400 steps (30.0|29.\d) / min (4 min 5\d s|5 min( \d s)?) left", shown())  # 50 steps in 100 s


def test_home_tells_the_same_time_left(iteration, client_of):
    make.make_imitation(iteration)
    tuning(iteration, losses=[2.5, 2.4, 2.3], first=1, steps=400, tokens_per_s=100.0)
    assert "3 of 400 steps 1.0 / s 6 min 37 s left" in text_of(body(client_of("viewer").get("/live")))


def test_the_curves_draw_the_last_attempt_of_each_step(iteration, client_of, run):
    tuning(iteration, losses=[3.0, 2.9, 9.9, 9.8], state="crashed")
    tuning(iteration, losses=[2.8, 2.7], first=3)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    loss = figure(page, "loss-0")["data"]
    assert [(line["x"], line["y"]) for line in loss] == [([1, 2, 3, 4], [3.0, 2.9, 2.8, 2.7])]
    assert figure(page, "tokens-per-s-0")["data"][0]["y"] == [500.0] * 4


def test_a_long_curve_is_thinned_and_says_so(iteration, client_of, run):
    tuning(iteration, losses=[3.0 - i / 1000 for i in range(1201)], steps=1201)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    raw, smoothed = figure(page, "loss-0")["data"]
    assert raw["x"][:3] == smoothed["x"][:3] == [1, 6, 11]
    assert raw["x"][-1] == 1201  # what is newest is always drawn
    assert len(raw["x"]) <= MOST_POINTS + 1
    assert "every 5th log drawn" in page
    assert len(figure(page, "loss-chart")["data"][0]["x"]) <= MOST_POINTS + 1


def test_a_thinned_line_is_smoothed_over_what_is_not_drawn_too(iteration, client_of, run):
    losses = [3.0 + math.sin(i) for i in range(2_000)]
    tuning(iteration, losses=losses, steps=2_000)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    whole = ema([(place, loss, 1.0) for place, loss in enumerate(losses)], over=20)
    smoothed = figure(page, "loss-0")["data"][1]
    assert smoothed["x"] == [*range(1, 2_000, 7), 2_000]
    assert smoothed["y"] == pytest.approx([whole[step - 1] for step in smoothed["x"]], rel=1e-4)
    assert "smoothed over 20 logs, each log faint; every 7th log drawn" in page


def test_the_numbers_of_a_long_tuning_count_what_is_not_drawn_too(iteration, client_of, run, shown):
    tuning(iteration, losses=[3.0, *[2.0] * 1_499], steps=5_000, state="crashed")
    Metric.objects.filter(step=800).update(memory_gib=7.25)
    make.make_imitation(iteration, found=make.make_preflight(response_tokens=5_000 * 500, steps=5_000))
    job = tuning(iteration, losses=[1.9] * 1_500, first=1_401, steps=5_000)
    Metric.objects.filter(job=job, step__lte=2_880).update(tokens_per_s=100.0)
    page = shown()
    assert "Step 2,900 of 5,000" in page
    assert "Peak memory 7.25 GiB" in page
    assert "Time left 35 min" in page  # 2,100 steps at the one a second of the last 20
    assert "The loss went from 3.00 to 1.90." in page


def test_a_page_reads_no_more_of_a_long_tuning_than_its_lines_draw(iteration, client_of, run):
    tuning(iteration, losses=[3.0] * 5_000, steps=5_000)
    assert len(logged_steps([iteration.pk])) <= MOST_POINTS + 2 * ENDS
    assert [metric.step for metric in logged_steps([iteration.pk])][-ENDS:] == list(range(4_981, 5_001))


def test_a_short_curve_is_drawn_whole(iteration, client_of, run):
    tuning(iteration, losses=[3.0] * MOST_POINTS)
    assert "log drawn" not in body(client_of("viewer").get(f"/runs/{run.pk}/"))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(0, 50))
def test_a_smoothed_line_starts_where_the_line_does_and_stays_within_it(values, over):
    smooth = ema([(place, value, 1.0) for place, value in enumerate(values)], over=over)
    assert len(smooth) == len(values)
    assert smooth[0] == pytest.approx(values[0])
    assert min(values) - 1e-3 <= min(smooth) <= max(smooth) <= max(values) + 1e-3


def test_curves_of_an_imitation_without_a_logged_step_are_empty(iteration, client_of, run):
    make.make_imitation(iteration)
    view = client_of("viewer").get(f"/runs/{run.pk}/").context["imitation"]
    assert [chart.figure["data"][0]["x"] for chart in imitation_charts(view)] == [[]] * 4


# Iterations


def test_the_newest_imitation_is_open_and_the_older_ones_are_asked_for_one_at_a_time(client_of, person):
    run = make.make_finished_run(person("member"))
    client = client_of("viewer")
    page = body(client.get(f"/runs/{run.pk}/"))
    folds = re.findall(r'<details class="card imitation" id="imitation-(\d)"( open)?', page)
    assert folds == [("2", " open"), ("1", ""), ("0", "")]
    assert page.count('id="loss-') == page.count('id="loss-chart') + 2  # the newest one's box and data, and no other's
    for url in re.findall(r'hx-get="(/runs/\d+/imitations/\d/)"', page):
        part = body(client.get(url, headers={"HX-Request": "true"}))
        assert "<html" not in part
        number = url.rstrip("/").rpartition("/")[2]
        assert len(figure(part, f"loss-{number}")["data"][-1]["x"]) == (40 if number == "0" else 12)
        assert f"Imitation, iteration {number}" in text_of(body(client.get(url)))


def test_an_imitation_nothing_is_known_of_has_no_page(client_of, run):
    assert client_of("viewer").get(f"/runs/{run.pk}/imitations/1/").status_code == 404


def test_more_metrics_and_attempts_take_no_more_queries(client_of, run, iteration):
    tuning(iteration, losses=[3.0], state="crashed")

    def more():
        make.make_metrics(Job.objects.get(state="crashed"), [2.0] * 100, first=2, steps=400)
        tuning(iteration, losses=[1.5] * 50, first=102, steps=400, state="failed")

    for url in (f"/runs/{run.pk}/", f"/runs/{run.pk}/imitations/0/"):
        Metric.objects.filter(step__gt=1).delete()
        Job.objects.filter(state="failed").delete()
        assert asks_the_same_of(client_of("viewer"), url, after=more) <= 20


# Stop, resume, use


@pytest.fixture
def stopped(iteration):
    """A tuning that was stopped at step 412 of 1,170, with a save."""
    make.make_imitation(iteration, saved_step=412, steps=1170, saved_at=timezone.now())
    return tuning(iteration, losses=[2.0, 1.9], first=411, steps=1170, state="stopped")


def test_a_stopped_tuning_says_where_and_offers_to_go_on_or_to_use_its_save(client_of, run, stopped):
    page = body(client_of("member").get(f"/runs/{run.pk}/"))
    assert "Stopped at step 412 of 1,170; a save of step 412 is there." in text_of(page)
    notice = page[page.index('id="stopped-0"') :]
    assert f'action="/runs/{run.pk}/resume"' in notice
    assert f'action="/runs/{run.pk}/use-save"' in notice


def test_a_save_to_go_on_from_has_the_only_button_that_resumes(client_of, run, stopped):
    assert body(client_of("member").get(f"/runs/{run.pk}/")).count(f'action="/runs/{run.pk}/resume"') == 1


def test_a_viewer_is_told_of_the_save_and_offered_nothing(client_of, run, stopped):
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    assert "a save of step 412 is there." in page
    assert "/use-save" not in page
    assert client_of("viewer").post(f"/runs/{run.pk}/use-save").status_code == 403
    assert not Job.objects.filter(use_saved=True).exists()


def test_a_member_uses_the_save_and_the_run_goes_on(client_of, run, stopped):
    page = text_of(body(client_of("member").post(f"/runs/{run.pk}/use-save", follow=True)))
    assert "The last save becomes the checkpoint, and the run goes on with the next step." in page
    assert "taking the last save" in page
    assert Job.objects.get(state="queued").use_saved
    assert "a save of step 412 is there" not in page
    Job.objects.filter(use_saved=True).update(state="finished", started_at=timezone.now(), ended_at=timezone.now())
    assert "the save of step 412 became the checkpoint" in text_of(body(client_of("viewer").get(f"/runs/{run.pk}/")))


def test_the_next_iterations_losses_follow_where_the_used_save_was(client_of, person):
    run = make.make_finished_run(person("member"), config=make.make_config(iterations=1))
    run.iterations.get(number=0).metrics.filter(step__gt=12).delete()
    curves = figure(body(client_of("viewer").get(f"/runs/{run.pk}/")), "loss-chart")["data"]
    assert [curve["x"][0] for curve in curves] == [1, 13]


def test_a_link_uses_no_save(client_of, run, stopped):
    assert client_of("member").get(f"/runs/{run.pk}/use-save").headers["Location"] == f"/runs/{run.pk}/"
    assert not Job.objects.filter(use_saved=True).exists()


def test_a_save_that_is_not_there_is_said_to_be_missing(client_of, run, stopped):
    Imitation.objects.update(saved_step=None)
    page = text_of(body(client_of("member").post(f"/runs/{run.pk}/use-save", follow=True)))
    assert "There is no save to use" in page
    assert Job.objects.filter(state="queued").count() == 0


def test_a_tuning_that_failed_shows_its_tip_its_note_and_its_save(client_of, run, iteration):
    make.make_imitation(iteration, saved_step=400, steps=1170)
    job = tuning(iteration, losses=[2.0, 9.9], first=411, steps=1170, state="failed")
    reason, note = "The loss diverges at step 412. Lower imitation.learning_rate (2e-05).", "Tried once more with 4 on the device."
    Job.objects.filter(pk=job.pk).update(reason=reason, note=note)
    page = body(client_of("member").get(f"/runs/{run.pk}/"))
    notice = page[page.index(f'id="failure-{job.pk}"') : page.index('id="loop-title"')]
    words = text_of(notice)
    assert reason in words
    assert note in words
    assert "A save of step 400 of 1,170 is there." in words
    assert "/use-save" in notice


def test_a_tuning_that_failed_before_any_save_offers_none(client_of, run, iteration):
    tuning(iteration, losses=[9.9], state="failed")
    assert "/use-save" not in body(client_of("member").get(f"/runs/{run.pk}/"))


def test_a_tuning_that_runs_offers_no_save_and_says_that_a_stop_saves_first(client_of, run, iteration):
    make.make_imitation(iteration, saved_step=400, steps=1170)
    tuning(iteration, losses=[2.0], first=410, steps=1170)
    page = body(client_of("member").get(f"/runs/{run.pk}/"))
    assert "/use-save" not in page
    assert "Last save: after step 400 of 1,170. A stop saves first." in text_of(page)


# The preflight as a step


def test_the_preflight_is_told_in_words_wherever_steps_are(client_of, person):
    run = make.make_run(person("member"))
    job = make.make_job(run.iterations.get(), Stage.IMITATION, Step.PREFLIGHT)
    client = client_of("member")
    for url in (f"/runs/{run.pk}/live", "/", "/jobs/"):
        page = text_of(body(client.get(url)))
        assert "checking the student" in page, url
        assert "preflight" not in page, url
    Job.objects.filter(pk=job.pk).update(state="failed", reason="It does not fit.", ended_at=timezone.now() - timedelta(minutes=1))
    for url in (f"/runs/{run.pk}/", "/", "/jobs/"):
        page = text_of(body(client.get(url)))
        assert "checking the student" in page, url
        assert "It does not fit." in page, url


def test_what_a_preflight_warns_of_is_read_where_it_happened(client_of, person):
    run = make.make_run(person("member"))
    job = make.make_job(run.iterations.get(), Stage.IMITATION, Step.PREFLIGHT, state="finished", note="Memory is tight.")
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    step = text_of(page[page.index('id="step-0-preflight"') : page.index('id="step-0-teacher_responses"')])
    assert step.startswith("id=") or "checking the student" in step
    assert "done in 1 min 20 s Memory is tight." in step
    assert job.items_total == 0


def test_the_data_of_the_curves_holds_nothing_a_page_cannot_read(iteration, client_of, run):
    tuning(iteration, losses=[2.0, 1.0])
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    for name in ("loss-0", "learning-rate-0", "grad-norm-0", "tokens-per-s-0"):
        json.dumps(figure(page, name), allow_nan=False)


@pytest.mark.django_db(transaction=True)
def test_an_older_imitation_unfolds_with_its_curves_drawn_to_its_width(page_of, person):
    run = make.make_finished_run(person("member"))
    page = page_of("viewer")
    page.goto(f"/runs/{run.pk}/")
    page.locator("#imitation-0 summary").click()
    page.wait_for_selector("#loss-0 .main-svg")
    box, drawn = page.locator("#loss-0").bounding_box(), page.locator("#loss-0 .main-svg").first.bounding_box()
    assert abs(box["width"] - drawn["width"]) <= 2
    close_old_connections()
