"""Home: what runs now, what waits for somebody, the experiments."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from experiments.board import others_running
from experiments.models import Job, Pace
from experiments.views.home import MOST_SHOWN
from tests import make
from tests.web.pages import asks_the_same_of, body, links, text_of, total
from trainer.plan import Stage, Step


def test_a_member_is_offered_the_demo_and_a_viewer_is_not(client_of):
    assert "Launch the demo" in body(client_of("member").get("/"))
    assert "Launch the demo" not in body(client_of("viewer").get("/"))


def test_a_stranger_is_sent_to_sign_in(client, db):
    for url in ("/", "/live"):
        assert client.get(url).headers["Location"].startswith("/sign-in/")


def test_a_running_job_is_shown_with_its_progress_rate_and_time_left(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name="quick-kudu-3")
    job = make.make_job(
        run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=1500, items_done=412, items_before=12
    )
    page = text_of(body(client_of("viewer").get("/live")))
    assert "quick-kudu-3" in page
    assert "Iteration 1 of 2 · discrimination · judgements" in page
    assert "412 of 1,500 judged" in page
    assert "4.0 / s" in page  # 400 in 100 s: what earlier jobs did counts for nothing
    assert "4 min 32 s left" in page
    assert job.state == "running"


def test_a_running_tuning_is_as_far_as_its_last_logged_step(client_of, person):
    run = make.make_run_until(person("member"), 0, Step.TUNING)
    iteration = run.iterations.get(number=0)
    job = make.make_job(iteration, Stage.IMITATION, Step.TUNING)
    make.make_imitation(iteration)  # 100 response tokens a step
    make.make_metrics(job, [1.6, 1.5], first=90, every=10, steps=400, tokens_per_s=100.0)
    page = text_of(body(client_of("viewer").get("/live")))
    assert "100 of 400 steps" in page
    assert "5 min left" in page


def test_a_failed_job_waits_for_somebody_until_it_is_tried_again(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    iteration = run.iterations.get(number=1)
    make.make_job(iteration, Stage.GENERATION, Step.CANDIDATES, state="failed", reason="The endpoint did not answer.")
    client = client_of("viewer")
    assert "The endpoint did not answer." in body(client.get("/"))
    make.make_job(iteration, Stage.GENERATION, Step.CANDIDATES, state="queued", worker="")
    assert "The endpoint did not answer." not in body(client.get("/"))


def test_quarantined_counts_open_as_many_instructions(client_of, person):
    make.make_finished_run(person("member"), seeds=40)
    client = client_of("viewer")
    [(url, text)] = [(url, text) for url, text in links(body(client.get("/"))) if "verdict=quarantined" in url]
    assert total(body(client.get(url))) == int(text)


def test_what_a_later_iteration_judged_again_is_no_longer_told_of_the_one_before(client_of, person):
    run = make.make_finished_run(person("member"), seeds=40)
    client = client_of("viewer")
    assert "in iteration 2" in text_of(body(client.get("/")))
    run.iterations.get(number=2).verdicts.filter(label="quarantined").delete()
    assert "quarantined" not in text_of(body(client.get("/")))


def test_more_runs_and_experiments_take_no_more_queries(client_of, person):
    owner = person("member")

    def add(first: int) -> None:
        for i in range(first, first + 3):
            experiment = make.make_experiment(owner, f"experiment {i}")
            run = make.make_run_until(owner, 1, Step.JUDGEMENTS, name=f"run-{i}", experiment=experiment)
            make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS)
            make.make_finished_run(owner, name=f"done-{i}", experiment=experiment)

    add(0)
    assert asks_the_same_of(client_of("viewer"), "/", after=lambda: add(3)) <= 10


def test_more_waiting_jobs_take_no_more_queries(client_of, person):
    owner = person("member")

    def add(first: int) -> None:
        for i in range(first, first + 3):
            run = make.make_run(owner, name=f"run-{i}")
            make.make_job(run.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, state="queued", worker="")
            failed = make.make_run(owner, name=f"failed-{i}")
            make.make_job(failed.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, state="failed", ended_at=timezone.now())

    add(0)
    assert asks_the_same_of(client_of("viewer"), "/", after=lambda: add(3)) <= 11


def test_hostile_names_are_shown_letter_for_letter(client_of, person):
    make.make_experiment(person("member"), "<script>alert(1)</script>")
    page = body(client_of("viewer").get("/"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page


# What waits for somebody


@pytest.fixture
def stopped(person) -> Job:
    """A job that stopped at a budget."""
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    return make.make_job(
        run.iterations.get(number=1), Stage.GENERATION, Step.CANDIDATES, state="stopped", over_budget=True, reason="The budget is spent."
    )


def test_a_run_that_stopped_at_a_budget_waits_for_somebody_until_it_goes_on(client_of, stopped):
    client = client_of("viewer")
    page = text_of(body(client.get("/")))
    assert "calm-lion-1 stopped at a budget in iteration 1, candidates" in page
    assert "The budget is spent." in page
    make.make_job(stopped.stage.iteration, Stage.GENERATION, Step.CANDIDATES, state="queued", worker="")
    assert "The budget is spent." not in body(client.get("/"))


def test_a_run_at_its_budget_that_somebody_asked_to_stop_waits_for_nobody(client_of, stopped):
    run = stopped.stage.iteration.run
    run.stop_requested_at = timezone.now()
    run.save()
    assert "The budget is spent." not in body(client_of("viewer").get("/"))


def failed_at(run, when) -> Job:
    iteration = run.iterations.get(number=0)
    return make.make_job(
        iteration, Stage.IMITATION, Step.TEACHER_RESPONSES, state="failed", reason=f"{run.name} has no key.", ended_at=when
    )


def test_a_failure_waits_for_somebody_whatever_its_owner_launched_since_until_it_is_a_week_old(client_of, person):
    now = timezone.now()
    for name, days in (("old", 8), ("new", 1)):
        failed_at(make.make_run(person("member"), name=name), now - timedelta(days=days))
    make.make_run(person("member"), name="another")
    page = body(client_of("viewer").get("/"))
    assert "new has no key." in page
    assert "old has no key." not in page


def test_the_newest_failures_come_first_and_the_others_are_in_the_list_of_jobs(client_of, person):
    for i in range(MOST_SHOWN + 1):
        failed_at(make.make_run(person("member"), name=f"run-{i}"), timezone.now())
    page = body(client_of("viewer").get("/"))
    assert page.index(f"run-{MOST_SHOWN} has no key.") < page.index("run-1 has no key.")
    assert "run-0 has no key." not in page
    assert ("/jobs/?state=failed", "More failed jobs") in links(page)


# What runs, and how well


@pytest.fixture
def running(person) -> Job:
    run = make.make_run(person("member"))
    return make.make_job(run.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, items_total=1500, items_done=400)


def test_a_job_that_waits_is_told_how_many_run_before_it_and_leads_to_them(client_of, person, running):
    for i in range(2):
        other = make.make_run(person("member"), name=f"other-{i}")
        make.make_job(other.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES)
    waiting = make.make_run(person("member"), name="waiting")
    make.make_job(waiting.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, state="queued", worker="")
    client = client_of("viewer")
    for url in ("/live", f"/runs/{waiting.pk}/live"):
        page = body(client.get(url))
        assert "waits for a teacher worker: 3 other jobs run there" in text_of(page), url
        assert ("/jobs/?state=running&queue=teacher", "3 other jobs") in links(page), url
    assert total(body(client.get("/jobs/?state=running&queue=teacher"))) == 3


def test_a_job_that_was_taken_up_meanwhile_is_not_in_its_own_way(running):
    seen = [Job.objects.get(pk=running.pk)]
    seen[0].state = "queued"
    assert others_running(seen) == {}


def test_jobs_of_another_queue_are_in_nobodys_way(client_of, person, running):
    waiting = make.make_run_until(person("member"), 0, Step.TUNING, name="waiting")
    make.make_job(waiting.iterations.get(number=0), Stage.IMITATION, Step.TUNING, state="queued", worker="")
    page = text_of(body(client_of("viewer").get("/live")))
    assert "waits for a gpu worker" in page
    assert "run there" not in page


def test_a_worker_that_misses_its_heartbeats_is_told_of_and_no_time_left_is_made_up(client_of, running):
    silent = timedelta(seconds=2 * settings.LIONWEB_HEARTBEAT_S + 4)
    lease_ends = timezone.now() - silent + timedelta(seconds=settings.LIONWEB_LEASE_S)
    Job.objects.update(lease_expires_at=lease_ends)
    for url in ("/live", f"/runs/{running.stage.iteration.run_id}/live"):
        page = text_of(body(client_of("viewer").get(url)))
        assert f"no sign of life from its worker for {silent.total_seconds():.0f} s" in page, url
        assert " left" not in page, url
        assert " / s" not in page, url


def test_a_heartbeat_that_is_a_little_late_worries_nobody(client_of, running):
    late = timedelta(seconds=settings.LIONWEB_HEARTBEAT_S)
    Job.objects.update(lease_expires_at=timezone.now() - late + timedelta(seconds=settings.LIONWEB_LEASE_S))
    page = text_of(body(client_of("viewer").get("/live")))
    assert "no sign of life" not in page
    assert "left" in page


def test_a_run_on_an_unwell_endpoint_says_so(client_of, running, unwell_state):
    endpoint = running.stage.iteration.run.run_config().endpoints["offline"]
    Pace.objects.create(base_url=endpoint.base_url, model="another", key_env=endpoint.key_env, state=unwell_state)
    client = client_of("viewer")
    assert "more than half of its last calls failed" not in text_of(body(client.get("/live")))
    Pace.objects.create(base_url=endpoint.base_url, model=endpoint.model, key_env=endpoint.key_env, state=unwell_state)
    assert "more than half of its last calls failed" in text_of(body(client.get("/live")))


def test_home_opens_beside_a_run_whose_config_is_of_another_version(client_of, running):
    run = running.stage.iteration.run
    run.config["teacher"]["no_longer_known"] = 1
    run.save()
    assert "400 of 1,500" in text_of(body(client_of("viewer").get("/")))
