"""The run page: numbers that add up and open their rows, live until final, failures where they happened, stop and resume."""

import re
from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone

from experiments.models import Budget, Endpoint, Job
from tests import make
from tests.web.pages import asks_the_same_of, body, figure, links, text_of, total
from trainer.plan import Stage, Step


@pytest.fixture
def finished(person):
    return make.make_finished_run(person("member"), seeds=40)


def test_judged_is_hard_and_easy_and_quarantined_in_the_table_and_the_chart(client_of, finished):
    response = client_of("viewer").get(f"/runs/{finished.pk}/")
    judged = [i.row for i in response.context["board"].iterations if i.number]
    assert all(row.judged == row.hard + row.easy + row.quarantined > 0 for row in judged)
    bars = {trace["name"]: trace["y"] for trace in figure(body(response), "pool-chart")["data"]}
    assert bars == {label: [getattr(row, label) for row in judged] for label in ("hard", "easy", "quarantined")}


def test_every_number_opens_as_many_rows(client_of, finished):
    client = client_of("viewer")
    page = body(client.get(f"/runs/{finished.pk}/"))
    opened = {url: text for url, text in links(page) if re.search(r"/(instructions|candidates)\?", url)}
    assert len(opened) >= 20
    for url, text in opened.items():
        assert total(body(client.get(url))) == int(re.sub(r"\D", "", text)), url


def test_the_bars_of_the_chart_open_as_many_instructions(client_of, finished):
    client = client_of("viewer")
    for trace in figure(body(client.get(f"/runs/{finished.pk}/")), "pool-chart")["data"]:
        for url, amount in zip(trace["customdata"], trace["y"], strict=True):
            assert total(body(client.get(url))) == amount


def test_an_accumulated_train_pool_opens_all_it_was_tuned_on(client_of, person):
    run = make.make_finished_run(person("member"), config=make.make_config(train_pool="accumulate"))
    client = client_of("viewer")
    page = body(client.get(f"/runs/{run.pk}/"))
    row = page[page.index('id="counts-2"') :]
    url, text = links(row)[0]
    assert text == "28"  # 12 seeds and twice 8
    assert total(body(client.get(url))) == 28


def test_a_live_run_asks_again_and_a_final_one_does_not(client_of, person, finished):
    live = make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name="live")
    make.make_job(live.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS)
    client = client_of("viewer")
    assert 'data-live="1"' in body(client.get(f"/runs/{live.pk}/live"))
    assert "data-live" not in body(client.get(f"/runs/{finished.pk}/live"))


@pytest.mark.parametrize("values", [{"state": "failed"}, {"state": "stopped"}, {"state": "stopped", "over_budget": True}])
def test_a_run_that_somebody_may_let_go_on_elsewhere_asks_now_and_then(client_of, person, values):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, **values)
    assert 'data-live="5"' in body(client_of("viewer").get(f"/runs/{run.pk}/live"))


def test_progress_is_read_from_the_rows_so_that_a_reload_loses_nothing(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=1500, items_done=412)
    for url in (f"/runs/{run.pk}/", f"/runs/{run.pk}/live"):
        page = text_of(body(client_of("viewer").get(url)))
        assert "412 of 1,500 judged" in page
        assert "4.1 / s" in page


def test_progress_agrees_with_the_counts_between_two_heartbeats(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    iteration = run.iterations.get(number=1)
    iteration.stages.get(name="discrimination").jobs.filter(step="judgements").delete()
    make.make_job(iteration, Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=12, items_done=3)
    iteration.verdicts.filter(instruction__position__gte=9).delete()
    page = text_of(body(client_of("viewer").get(f"/runs/{run.pk}/live")))
    assert "9 of 12 judged" in page


@pytest.mark.parametrize("state", ["stopped", "crashed"])
@pytest.mark.parametrize(("number", "step"), [(0, Step.TEACHER_RESPONSES), (1, Step.JUDGEMENTS)])
def test_a_job_that_ended_between_two_heartbeats_shows_what_its_rows_tell(client_of, person, number, step, state):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    job = Job.objects.get(stage__iteration=run.iterations.get(number=number), step=step)
    Job.objects.filter(pk__gt=job.pk).delete()
    Job.objects.filter(pk=job.pk).update(state=state, items_done=0, items_total=20)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/live"))
    assert f"{state} at 12 of 20" in text_of(page)
    assert "12 of 20" in text_of(page[page.index(f'id="job-{job.pk}"') :])


def test_an_attempt_that_was_killed_shows_what_the_next_one_found(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    iteration = run.iterations.get(number=1)
    killed = make.make_job(iteration, Stage.DISCRIMINATION, Step.JUDGEMENTS, state="crashed", items_total=1500)
    make.make_job(iteration, Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=1500, items_before=267, items_done=300)
    client = client_of("viewer")
    page = body(client.get(f"/runs/{run.pk}/live"))
    assert "267 of 1,500" in text_of(page[page.index(f'id="job-{killed.pk}"') :])
    assert "267 of 1,500" in text_of(body(client.get("/jobs/?state=crashed")))


def test_a_tuning_that_goes_on_from_a_save_is_as_far_and_as_fast_as_its_own_steps(client_of, person):
    run = make.make_run_until(person("member"), 0, Step.TUNING)
    iteration = run.iterations.get(number=0)
    for state, steps in (("crashed", range(10, 260, 10)), ("running", range(200, 230, 10))):
        job = make.make_job(iteration, Stage.IMITATION, Step.TUNING, state=state)
        for step in steps:
            iteration.metrics.create(job=job, step=step, steps=400, loss=1.0, learning_rate=1e-3)
    page = text_of(body(client_of("viewer").get(f"/runs/{run.pk}/live")))
    assert "220 of 400 steps" in page
    assert "12.0 / min" in page  # 20 steps in 100 s


def test_a_failure_is_shown_where_it_happened_and_can_be_resumed(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    reason = "The endpoint did not answer."
    make.make_job(
        run.iterations.get(number=1), Stage.GENERATION, Step.CANDIDATES, state="failed", reason=reason, note="3 were answered 429."
    )
    page = body(client_of("member").get(f"/runs/{run.pk}/"))
    stage = page[page.index('id="stage-1-generation"') : page.index('id="stage-1-imitation"')]
    assert reason in stage
    assert "3 were answered 429." in page
    assert f'action="/runs/{run.pk}/resume"' in page
    assert f'action="/runs/{run.pk}/resume"' not in body(client_of("viewer").get(f"/runs/{run.pk}/"))


def test_a_member_stops_and_resumes_a_run(client_of, person):
    run = make.make_run(person("member"))
    make.make_job(run.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, state="queued", worker="")
    client = client_of("member")
    assert 'state-stopped">stopped' in body(client.post(f"/runs/{run.pk}/stop", follow=True))
    assert 'state-queued">queued' in body(client.post(f"/runs/{run.pk}/resume", follow=True))
    assert [job.state for job in Job.objects.order_by("id")] == ["stopped", "queued"]


@pytest.mark.parametrize("action", ["stop", "resume"])
def test_nobody_less_than_a_member_stops_or_resumes_and_a_link_does_neither(client_of, client, person, action):
    run = make.make_run(person("member"))
    assert client_of("viewer").post(f"/runs/{run.pk}/{action}").status_code == 403
    assert client.post(f"/runs/{run.pk}/{action}").status_code == 302
    assert client_of("member").get(f"/runs/{run.pk}/{action}").headers["Location"] == f"/runs/{run.pk}/"
    assert not Job.objects.exists()


@pytest.fixture
def over_budget(person):
    """A run that stopped at its budget, which has no room."""
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_completions(make.make_line(run), 10)
    Budget.objects.create(run=run, most_calls=10, set_at=timezone.now() - timedelta(hours=1))
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state="stopped", over_budget=True)
    return run


def test_a_run_at_its_budget_is_offered_no_resume_that_would_stop_at_once(client_of, over_budget):
    client = client_of("admin")
    page = body(client.get(f"/runs/{over_budget.pk}/"))
    assert f'action="/runs/{over_budget.pk}/resume"' not in page
    assert "Raise it and go on" in page
    told = text_of(body(client.post(f"/runs/{over_budget.pk}/resume", follow=True)))
    assert "The budget of run calm-lion-1 has no room for the next call" in told
    assert "The run goes on where it was." not in told
    assert not Job.objects.filter(state="queued").exists()


def test_a_run_at_its_budget_with_a_failure_beside_it_can_be_resumed(client_of, over_budget):
    make.make_job(over_budget.iterations.get(number=0), Stage.EVALUATION, Step.BENCHMARKS, state="failed")
    Job.objects.filter(step=Step.BENCHMARKS, state="finished").delete()
    client = client_of("member")
    assert f'action="/runs/{over_budget.pk}/resume"' in body(client.get(f"/runs/{over_budget.pk}/"))
    client.post(f"/runs/{over_budget.pk}/resume")
    assert Job.objects.filter(step=Step.BENCHMARKS, state="queued").exists()


def test_a_run_whose_budget_was_lifted_in_the_admin_can_be_resumed(client_of, over_budget):
    Budget.objects.all().delete()
    client = client_of("member")
    assert f'action="/runs/{over_budget.pk}/resume"' in body(client.get(f"/runs/{over_budget.pk}/"))
    client.post(f"/runs/{over_budget.pk}/resume")
    assert Job.objects.filter(step=Step.JUDGEMENTS, state="queued").exists()


def test_more_iterations_and_instructions_take_no_more_queries(client_of, person):
    owner = person("member")
    small = make.make_finished_run(owner, name="small", config=make.make_config(iterations=1, new=2))
    large = make.make_finished_run(owner, name="large", config=make.make_config(iterations=4, new=20))
    client = client_of("viewer")
    for suffix in ("", "live"):
        amounts = {asks_the_same_of(client, f"/runs/{run.pk}/{suffix}", after=lambda: None) for run in (small, large)}
        assert len(amounts) == 1
        assert amounts.pop() <= 16


def test_settings_that_depart_from_the_defaults_are_marked(client_of, person):
    run = make.make_run(person("member"), config=make.make_config(tau=2.5))
    rows = {row.name: row for row in client_of("viewer").get(f"/runs/{run.pk}/").context["settings"]}
    assert rows["loop.tau"].departs
    assert rows["loop.new_per_iteration"].departs
    assert not rows["loop.similarity"].departs
    assert not rows["teacher.endpoint"].departs


def test_the_loss_curve_goes_on_over_the_iterations_and_draws_the_last_attempt(client_of, finished):
    iteration = finished.iterations.get(number=1)
    again = make.make_job(iteration, Stage.IMITATION, Step.TUNING, state="crashed")
    iteration.metrics.create(job=again, step=12, steps=12, loss=0.123, learning_rate=1e-3)
    curves = figure(body(client_of("viewer").get(f"/runs/{finished.pk}/")), "loss-chart")["data"]
    assert [curve["x"][0] for curve in curves] == [1, 41, 53]
    assert curves[1]["y"][-1] == 0.123


def test_the_intervals_of_scores_are_1_96_standard_errors(client_of, finished):
    trace = figure(body(client_of("viewer").get(f"/runs/{finished.pk}/")), "score-chart")["data"][0]
    assert trace["error_y"]["array"] == [pytest.approx(4.9)] * 3


@pytest.mark.parametrize("parents", ["by_verdict", "random", "uniform"])
def test_what_was_made_is_counted_by_origin_whoever_the_parents_were(client_of, person, parents):
    run = make.make_finished_run(person("member"), config=make.make_config(parents=parents))
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    card = text_of(page[page.index('id="stage-1-generation"') : page.index('id="stage-1-imitation"')])
    hard, easy = (run.instructions.filter(iteration__number=1, origin=origin).count() for origin in ("hard", "easy"))
    assert f"{hard + easy} new, by origin: {hard} hard , {easy} easy" in card
    assert "from hard" not in card


def test_a_run_that_has_only_begun_has_a_page(client_of, person):
    run = make.make_run(person("member"))
    assert "None yet" in body(client_of("viewer").get(f"/runs/{run.pk}/"))


def test_a_hostile_run_name_neither_leaves_its_script_nor_becomes_a_tag(client_of, person):
    run = make.make_run(person("member"), name="</script><img src=x onerror=alert(1)>")
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    assert "<img src=x" not in page
    assert "</script><img" not in page


def test_the_scores_page_counts_right_and_wrong_items(client_of, finished):
    client = client_of("viewer")
    url = f"/runs/{finished.pk}/scores/demo_skills/2/"
    everything = total(body(client.get(url)))
    by_outcome = [total(body(client.get(f"{url}?outcome={name}"))) for name in ("right", "wrong", "unreadable")]
    assert everything == sum(by_outcome) == 60
    assert total(body(client.get(f"{url}?task=copy"))) == 10
    assert client.get(f"/runs/{finished.pk}/scores/no_such/2/").status_code == 404


def test_a_stranger_sees_no_run(client, finished):
    for suffix in ("", "live", "instructions", "candidates", "scores/demo_skills/2/"):
        assert client.get(f"/runs/{finished.pk}/{suffix}").headers["Location"].startswith("/sign-in/")


def test_settings_are_listed_in_the_order_of_the_config(client_of, finished):
    names = [row.name for row in client_of("viewer").get(f"/runs/{finished.pk}/").context["settings"]]
    assert names[:4] == ["seed", "seed_pool", "loop.iterations", "loop.new_per_iteration"]
    assert names[-1].startswith("endpoints.")


def test_a_run_whose_config_cannot_be_read_says_so_on_its_page_and_when_resumed(client_of, person):
    run = make.make_run(person("member"))
    make.make_job(run.iterations.get(), Stage.IMITATION, Step.TEACHER_RESPONSES, state="failed")
    run.config["of_another_version"] = 1
    run.save()
    client = client_of("member")
    for url in (f"/runs/{run.pk}/", f"/runs/{run.pk}/live"):
        response = client.get(url)
        assert response.status_code == 422
        assert "of_another_version: Unknown setting" in text_of(body(response))
    assert client.post(f"/runs/{run.pk}/resume").status_code == 302
    assert Job.objects.count() == 1


def test_a_batch_run_whose_endpoint_no_longer_offers_batches_is_resumed_without(client_of, person):
    config = make.make_config()
    endpoint = replace(config.endpoints["offline"], base_url="https://a.example/v1", batch_api=True)
    config = replace(config, endpoints={"offline": endpoint}, teacher=replace(config.teacher, batch=True))
    run = make.make_run(person("member"), config=config)
    make.make_job(run.iterations.get(), Stage.IMITATION, Step.TEACHER_RESPONSES, state="failed")
    Endpoint.objects.create(name="offline", base_url="https://a.example/v1", model=endpoint.model, batch_api=False)
    page = body(client_of("member").post(f"/runs/{run.pk}/resume", follow=True))
    assert "No longer in batch mode, since the endpoint offers no Batch API: teacher." in page
    run.refresh_from_db()
    assert (run.run_config().teacher.batch, run.run_config().endpoints["offline"].batch_api) == (False, False)
    assert Job.objects.filter(state="queued").exists()


def test_the_page_of_a_run_that_has_waited_for_long_asks_no_more(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state="failed")
    Job.objects.update(ended_at=timezone.now() - timedelta(hours=2))
    assert "data-live" not in body(client_of("viewer").get(f"/runs/{run.pk}/live"))
