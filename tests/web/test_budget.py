"""Budgets on pages: set by a member on the run, by an admin on the endpoint; what stopped at one says so and goes on."""

import re
import time

import pytest

import trainer.pacing
from experiments.models import Budget, Endpoint, Job, Pace
from experiments.states import JobState
from tests import make
from tests.web.pages import body, text_of
from trainer.calls import Call, Done, Outcome
from trainer.config import EndpointConfig
from trainer.plan import Stage, Step


@pytest.fixture
def run(person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_completions(make.make_line(run), 10, cost=100_000_000)
    return run


@pytest.fixture
def stopped(run):
    """A run that stopped at its budget of ten calls."""
    Budget.objects.create(run=run, most_calls=10, most_nanodollars=50_000_000_000)
    reason = "The budget of run calm-lion-1 is spent: 10 of 10 calls are made. Raise it to go on."
    make.make_job(
        run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state=JobState.STOPPED, over_budget=True, reason=reason
    )
    return run


@pytest.fixture
def big(db):
    return Endpoint.objects.create(name="big", base_url="https://big.example/v1", model="m")


def test_a_run_that_stopped_at_its_budget_says_what_it_is_and_what_the_rest_needs(client_of, stopped):
    response = client_of("member").get(f"/runs/{stopped.pk}/")
    page = text_of(body(response))
    rest = response.context["costs"].rest.calls
    assert "10 of 10 calls are made" in page
    assert f"The rest needs about {rest} calls" in page
    assert f"{rest} calls more than the run's budget of 10 has left" in page
    assert response.context["budget_form"]["most_calls"].value() == round(1.05 * (10 + rest))
    assert response.context["budget_form"]["most_dollars"].value() == "50"


def test_raising_it_there_resumes_the_run_at_once(client_of, stopped):
    response = client_of("member").post(f"/runs/{stopped.pk}/budget", {"most_calls": "500", "most_dollars": "50"}, follow=True)
    assert "The budget is set. The run goes on where it was." in text_of(body(response))
    assert [job.state for job in Job.objects.filter(step=Step.JUDGEMENTS).order_by("id")] == ["stopped", "queued"]
    assert "stopped at a budget" not in text_of(body(response))


def test_one_that_is_still_too_small_says_so_and_starts_nothing(client_of, stopped):
    response = client_of("member").post(f"/runs/{stopped.pk}/budget", {"most_calls": "10", "most_dollars": ""}, follow=True)
    assert "it is spent already" in text_of(body(response))
    assert Job.objects.filter(step=Step.JUDGEMENTS).count() == 1


def test_a_stopped_run_of_before_says_nothing_once_it_was_tried_again(client_of, stopped):
    make.make_job(stopped.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state=JobState.FINISHED)
    assert "stopped at a budget" not in text_of(body(client_of("member").get(f"/runs/{stopped.pk}/")))


@pytest.mark.parametrize(
    ("typed", "complaint"), [("-3", "A budget is more than 0."), ("many", "Give a whole number"), ("9" * 20, "The most is")]
)
def test_a_bad_budget_is_refused_in_place_with_what_was_typed(client_of, run, typed, complaint):
    response = client_of("member").post(f"/runs/{run.pk}/budget", {"most_calls": typed})
    assert response.status_code == 422
    assert complaint in text_of(body(response))
    assert f'value="{typed}"' in body(response)
    assert not Budget.objects.exists()


def test_what_is_spent_and_forecast_is_drawn_against_the_budget(client_of, run):
    Budget.objects.create(run=run, most_calls=40, most_nanodollars=4_000_000_000)
    response = client_of("viewer").get(f"/runs/{run.pk}/")
    page = body(response)
    assert "$1.00 of $4.00 spent" in text_of(page)
    assert "10 of 40 calls" in text_of(page)
    assert 'aria-valuetext="25 % spent"' in page
    assert re.search(r'class="meter is-over"', page), "the calls that are forecast do not fit"


def test_an_empty_budget_is_none(client_of, run):
    Budget.objects.create(run=run, most_calls=40)
    client_of("member").post(f"/runs/{run.pk}/budget", {"most_calls": "", "most_dollars": ""})
    assert not Budget.objects.exists()
    assert "No budget is set: $1.00 and 10 calls so far." in text_of(body(client_of("viewer").get(f"/runs/{run.pk}/ledger")))


def test_the_ledger_has_the_form_with_the_caps_as_they_are(client_of, run):
    Budget.objects.create(run=run, most_calls=40, most_nanodollars=4_250_000_000)
    form = client_of("member").get(f"/runs/{run.pk}/ledger").context["budget_form"]
    assert (form["most_calls"].value(), form["most_dollars"].value()) == (40, "4.25")


def test_a_viewer_sees_the_budget_and_sets_none(client_of, client, run):
    Budget.objects.create(run=run, most_calls=40)
    for url in (f"/runs/{run.pk}/", f"/runs/{run.pk}/ledger"):
        page = body(client_of("viewer").get(url))
        assert "10 of 40 calls" in text_of(page)
        assert 'name="most_calls"' not in page
    assert client_of("viewer").post(f"/runs/{run.pk}/budget", {"most_calls": "5"}).status_code == 403
    assert client.post(f"/runs/{run.pk}/budget", {"most_calls": "5"}).status_code == 302
    assert client_of("member").get(f"/runs/{run.pk}/budget").status_code == 405
    assert Budget.objects.get().most_calls == 40


# Endpoints


def test_an_admin_sets_the_budget_of_an_endpoint(client_of, big, run):
    make.make_completions(make.make_line(run, endpoint="big", role="referee"), 7, cost=1_000_000_000)
    client = client_of("admin")
    response = client.post(f"/endpoints/{big.pk}/budget", {"most_dollars": "10", "most_calls": ""}, follow=True)
    page = text_of(body(response))
    assert "The budget is set." in page
    assert "$7.00 of $10.00 spent" in page
    assert Budget.objects.get().endpoint == big


def test_nobody_less_than_an_admin_sets_it_and_everybody_reads_it(client_of, client, big):
    for role in ("viewer", "member"):
        page = client_of(role).get(f"/endpoints/{big.pk}/budget")
        assert page.status_code == 200
        assert "most_calls" not in body(page)
        assert client_of(role).post(f"/endpoints/{big.pk}/budget", {"most_calls": "5"}).status_code == 403
    assert client.get(f"/endpoints/{big.pk}/budget").status_code == 302
    assert not Budget.objects.exists()


def test_a_bad_budget_of_an_endpoint_is_refused_in_place(client_of, big):
    response = client_of("admin").post(f"/endpoints/{big.pk}/budget", {"most_dollars": "0"})
    assert response.status_code == 422
    assert "A budget is more than 0." in text_of(body(response))


# Endpoints that are unwell


@pytest.fixture
def unwell_state():
    """The pace of an endpoint whose last calls all failed."""
    failed = Done(call=Call(key="a" * 64, role="referee", input_tokens=9, output_tokens=9), outcome=Outcome.FAILED, error="HTTP 503")
    pace = trainer.pacing.Pace()
    pace.settle([failed] * 10, limits=EndpointConfig(), now=time.time())
    return pace.as_dict()


def test_an_unwell_endpoint_has_a_banner_while_the_run_is_live(client_of, run, unwell_state):
    config = run.run_config().endpoints["offline"]
    Pace.objects.create(base_url=config.base_url, model=config.model, key_env=config.key_env, state=unwell_state)
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/live"))
    assert re.search(r'<div class="notice warning" role="status" id="unwell-offline">', page)
    assert "more than half of its last calls failed" in text_of(page)
    assert "HTTP 503" in page


def test_a_well_endpoint_and_that_of_another_model_have_none(client_of, run, unwell_state):
    config = run.run_config().endpoints["offline"]
    Pace.objects.create(base_url=config.base_url, model="another", key_env=config.key_env, state=unwell_state)
    Pace.objects.create(base_url=config.base_url, model=config.model, key_env=config.key_env)
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS)
    assert "unwell-" not in body(client_of("viewer").get(f"/runs/{run.pk}/live"))
