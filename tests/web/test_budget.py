"""Budgets on pages: everybody sees them, an admin sets them; what stopped at one says so and goes on."""

import re

import pytest

from experiments.models import Budget, Endpoint, Job, Pace
from experiments.states import JobState
from tests import make
from tests.web.pages import body, links, text_of
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
    response = client_of("admin").get(f"/runs/{stopped.pk}/")
    page = text_of(body(response))
    rest = response.context["costs"].rest.calls
    assert "10 of 10 calls are made" in page
    assert f"The rest needs about {rest} calls" in page
    assert f"{rest} calls more than the run's budget of 10 has left" in page
    assert response.context["budget_form"]["most_calls"].value() == round(1.05 * (10 + rest))
    assert response.context["budget_form"]["most_dollars"].value() == "50"


def test_raising_it_there_resumes_the_run_at_once(client_of, stopped):
    response = client_of("admin").post(f"/runs/{stopped.pk}/budget", {"most_calls": "500", "most_dollars": "50"}, follow=True)
    assert "The budget is set. The run goes on where it was." in text_of(body(response))
    assert [job.state for job in Job.objects.filter(step=Step.JUDGEMENTS).order_by("id")] == ["stopped", "queued"]
    assert "stopped at a budget" not in text_of(body(response))


def test_one_that_is_still_too_small_says_so_and_starts_nothing(client_of, stopped):
    response = client_of("admin").post(f"/runs/{stopped.pk}/budget", {"most_calls": "10", "most_dollars": ""}, follow=True)
    assert "it is spent already" in text_of(body(response))
    assert Job.objects.filter(step=Step.JUDGEMENTS).count() == 1


def test_a_stopped_run_of_before_says_nothing_once_it_was_tried_again(client_of, stopped):
    make.make_job(stopped.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state=JobState.FINISHED)
    assert "stopped at a budget" not in text_of(body(client_of("member").get(f"/runs/{stopped.pk}/")))


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("-3", "A budget is more than 0."),
        ("many", "Give a whole number"),
        ("9" * 20, "The most is"),
        ("1,50", "1,50 can be read in more than one way. Write decimals as in 1.50 and thousands as in 1,000 or 1000."),
        ("1 000", "can be read in more than one way"),
    ],
)
def test_a_bad_budget_is_refused_in_place_with_what_was_typed(client_of, run, typed, complaint):
    response = client_of("admin").post(f"/runs/{run.pk}/budget", {"most_calls": typed})
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
    client_of("admin").post(f"/runs/{run.pk}/budget", {"most_calls": "", "most_dollars": ""})
    assert "No budget is set: $1.00 and 10 calls so far." in text_of(body(client_of("viewer").get(f"/runs/{run.pk}/ledger")))


def test_the_ledger_has_the_form_with_the_caps_as_they_are(client_of, run):
    Budget.objects.create(run=run, most_calls=40, most_nanodollars=4_250_000_000)
    form = client_of("admin").get(f"/runs/{run.pk}/ledger").context["budget_form"]
    assert (form["most_calls"].value(), form["most_dollars"].value()) == (40, "4.25")


@pytest.mark.parametrize("role", ["viewer", "member"])
def test_nobody_less_than_an_admin_sets_a_runs_budget_even_of_a_run_of_their_own(client_of, run, role):
    Budget.objects.create(run=run, most_calls=40)
    for url in (f"/runs/{run.pk}/", f"/runs/{run.pk}/ledger"):
        page = body(client_of(role).get(url))
        assert "10 of 40 calls" in text_of(page)
        assert 'name="most_calls"' not in page
    assert client_of(role).post(f"/runs/{run.pk}/budget", {"most_calls": "5"}).status_code == 403
    assert Budget.objects.get().most_calls == 40


def test_a_stranger_sets_none_and_looking_sets_none(client_of, client, run):
    assert client.post(f"/runs/{run.pk}/budget", {"most_calls": "5"}).status_code == 302
    assert client_of("admin").get(f"/runs/{run.pk}/budget").headers["Location"] == f"/runs/{run.pk}/"
    assert not Budget.objects.exists()


@pytest.mark.parametrize(("role", "offered"), [("viewer", False), ("member", False), ("admin", True)])
def test_who_may_raise_it_is_offered_that_and_others_are_told_who_may(client_of, stopped, role, offered):
    page = body(client_of(role).get(f"/runs/{stopped.pk}/"))
    assert ("Raise it and go on" in page) is offered
    assert ("An admin can raise the run's budget." in text_of(page)) is not offered


def test_a_run_that_stopped_at_an_endpoints_budget_is_led_to_that_one(client_of, stopped):
    offline = Endpoint.objects.create(name="offline", base_url="https://big.example/v1", model="m")
    Budget.objects.create(endpoint=offline, most_calls=10)
    Budget.objects.filter(run=stopped).update(most_calls=500)
    page = body(client_of("admin").get(f"/runs/{stopped.pk}/"))
    notice = page[page.index('id="over-budget-') :].partition('id="costs"')[0]
    assert (f"/endpoints/{offline.pk}/budget", "Raise it and go on") in links(notice)
    assert 'name="most_calls"' not in notice
    assert (f"/runs/{stopped.pk}/ledger#budget-title", "its ledger page") in links(page)
    assert "is for all runs on it together; an admin can raise it" in text_of(body(client_of("member").get(f"/runs/{stopped.pk}/")))


@pytest.mark.parametrize(
    ("typed", "nanodollars"), [("$5", 5_000_000_000), ("$ 1,000.50", 1_000_500_000_000), (".5", 500_000_000), ("0.000000001", 1)]
)
def test_dollars_are_read_as_people_type_them(client_of, run, typed, nanodollars):
    assert client_of("admin").post(f"/runs/{run.pk}/budget", {"most_dollars": typed}).status_code == 302
    assert Budget.objects.get().most_nanodollars == nanodollars


@pytest.mark.parametrize(
    ("typed", "complaint"), [("0.0000000001", "the least is $0.000000001."), ("$1,50", "can be read in more than one way")]
)
def test_dollars_that_would_not_be_kept_as_typed_are_refused(client_of, run, typed, complaint):
    response = client_of("admin").post(f"/runs/{run.pk}/budget", {"most_dollars": typed})
    assert response.status_code == 422
    assert complaint in text_of(body(response))
    assert not Budget.objects.exists()


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
