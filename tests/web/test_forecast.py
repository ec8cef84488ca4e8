"""The forecast on the launch form: for what is chosen, with what it rests on, and against the budget."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from experiments.models import Budget, Completion, Endpoint, Run, SeedInstruction, SeedPool
from experiments.services import forecasts
from tests import make
from tests.web.pages import asks_the_same_of, body, text_of
from tests.web.test_launch import field_of, filled
from trainer.completions import completion_key
from trainer.prompts import teacher_messages
from trainer.records import Instruction
from trainer.wire import request_of

HTMX = {"HX-Request": "true"}


@pytest.fixture
def big(db):
    return Endpoint.objects.create(
        name="big", base_url="https://big.example/v1", model="big-model", key_env="", price_input=1.0, price_output=2.0, max_at_once=10
    )


def forecast_of(client, query: str = "preset=demo", **changes):
    return client.post(f"/runs/forecast?{query}", filled(client, query, **changes), headers=HTMX)


def answer_seeds(pool: SeedPool, amount: int) -> None:
    """Put the offline teacher's answers to the first seeds into the store, as a run of the demo would have."""
    config = make.make_config()
    for seed in SeedInstruction.objects.filter(pool=pool)[:amount]:
        messages = teacher_messages(Instruction(key="", text=seed.text, input=seed.input))
        request = request_of("offline", config.endpoints["offline"], config.teacher, messages)
        Completion.objects.create(
            key=completion_key(request), endpoint="offline", model="m", request=request, text="x", finish_reason="stop",
            prompt_tokens=1, completion_tokens=1, latency_s=0.1,
        )  # fmt: skip


def test_the_demo_is_forecast_with_its_calls_tokens_and_assumptions(client_of):
    page = text_of(body(forecast_of(client_of("member"))))
    assert "Calls 18,300" in page  # 1,500 + 3 x 600 of the teacher, 2 x (1,500 + 2,100 + 2,700) of the referee, 2,400 of the generator
    assert "Cost $0 " in page
    assert "assumed" in page
    assert "0 of the 1,500 teacher calls on the seeds are in the store already: counted." in page
    assert "<html" not in page


def test_the_table_adds_up_to_the_glance(client_of, big):
    response = forecast_of(client_of("member"), endpoint="big", **{"loop.iterations": "1"})
    forecast = response.context["forecast"]
    rows = re.findall(r"<tr><td class=\"num\">(\d)</td><td>(\w+)</td>", body(response))
    assert rows == [("0", "imitation"), ("1", "discrimination"), ("1", "generation"), ("1", "imitation")]
    assert forecast.calls == 1500 + 3000 + 800 + 600
    assert f"{forecast.calls:,}" in body(response)


def test_what_the_store_has_is_counted_seed_by_seed(client_of):
    pool = make.make_pool("mine", size=12)
    answer_seeds(pool, 5)
    forecast = forecast_of(client_of("member"), seed_pool=str(pool.pk)).context["forecast"]
    assert (forecast.lines[0].calls, forecast.lines[0].saved) == (7, 5)
    assert "5 of the 12 teacher calls on the seeds are in the store already: counted." in forecast.assumptions


def test_another_temperature_is_another_call(client_of):
    pool = make.make_pool("mine", size=12)
    answer_seeds(pool, 5)
    forecast = forecast_of(client_of("member"), seed_pool=str(pool.pk), **{"teacher.temperature": "0.3"}).context["forecast"]
    assert forecast.saved == 0


def test_of_a_large_pool_an_even_sample_is_looked_up_and_said(client_of, monkeypatch):
    monkeypatch.setattr(forecasts, "MOST_COUNTED", 20)
    monkeypatch.setattr(forecasts, "SAMPLE", 10)
    pool = make.make_pool("mine", size=40)
    answer_seeds(pool, 20)
    forecast = forecast_of(client_of("member"), seed_pool=str(pool.pk)).context["forecast"]
    assert forecast.lines[0].saved == 20
    assert "About 20 of the 40 teacher calls on the seeds are in the store already: 5 of a sample of 10." in forecast.assumptions


def test_earlier_runs_on_the_endpoint_say_what_its_calls_are_like(client_of, person, big):
    run = make.make_run(person("member"))
    make.make_completions(make.make_line(run, endpoint="big"), 20, prompt_tokens=80, completion_tokens=40, latency_s=3.0)
    forecast = forecast_of(client_of("member"), endpoint="big").context["forecast"]
    first = forecast.lines[0]
    assert (first.input_tokens, first.output_tokens, first.seconds) == (1500 * 80, 1500 * 40, pytest.approx(1500 * 3.0 / 10))
    assert first.nanodollars == 1500 * (80 * 1000 + 40 * 2000)
    assert any("seen in 20 calls of earlier runs on big" in sentence for sentence in forecast.assumptions)


def test_nineteen_calls_or_those_of_another_endpoint_say_nothing(client_of, person, big):
    run = make.make_run(person("member"))
    make.make_completions(make.make_line(run, endpoint="big"), 19, completion_tokens=999)
    make.make_completions(make.make_line(run, endpoint="small"), 50, completion_tokens=999)
    assert not any("seen" in sentence for sentence in forecast_of(client_of("member"), endpoint="big").context["forecast"].assumptions)


def test_an_endpoint_without_a_price_is_said_instead_of_a_promise(client_of):
    Endpoint.objects.create(name="bare", base_url="https://bare.example/v1", model="m")
    page = text_of(body(forecast_of(client_of("member"), endpoint="bare")))
    assert "no price is set on endpoint bare" in page
    assert "$0" not in page


def test_batch_mode_is_told_in_words(client_of, big):
    Endpoint.objects.filter(name="big").update(batch_api=True)
    batched = ("teacher.batch", "referee.batch", "generator.batch")
    response = forecast_of(client_of("member"), endpoint="big", **dict.fromkeys(batched, "on"))
    assert "Time of the calls up to 24 h a batch" in text_of(body(response))
    assert response.context["forecast"].seconds == 0


def test_what_is_over_the_budget_is_warned_of_by_how_much(client_of, big):
    client = client_of("member")
    plain = forecast_of(client, endpoint="big").context["forecast"]
    response = forecast_of(client, endpoint="big", most_calls="1,000", most_dollars="$0.50")
    page = text_of(body(response))
    assert f"{plain.calls - 1000:,} calls over the budget of 1,000" in page
    assert "over the budget of $0.50" in page
    assert "over the budget" not in text_of(body(forecast_of(client, endpoint="big", most_calls="1000000", most_dollars="1000")))


def test_a_warning_is_no_refusal(client_of):
    client = client_of("member")
    assert client.post("/runs/new?preset=demo", filled(client, most_calls="5")).status_code == 302


def test_what_is_missing_is_named_and_the_name_of_the_run_is_not(client_of):
    page = text_of(body(forecast_of(client_of("member"), "preset=paper-7b", endpoint="", seed_pool="", new_experiment="", experiment="")))
    assert "The forecast needs: Seed pool, Endpoint." in page
    refused = text_of(body(forecast_of(client_of("member"), **{"loop.iterations": "many"})))
    assert "The forecast needs: Iterations." in refused


def test_a_bad_budget_does_not_hide_the_forecast(client_of):
    assert "Calls 18,300" in text_of(body(forecast_of(client_of("member"), most_dollars="lots")))


def test_without_scripts_a_button_gives_the_whole_page_with_everything_typed(client_of):
    client = client_of("member")
    response = client.post("/runs/forecast?preset=demo", filled(client, run_name="typed-by-hand"))
    page = body(response)
    assert "</html>" in page
    assert 'value="typed-by-hand"' in page
    assert "Calls 18,300" in text_of(page)
    assert 'formaction="/runs/forecast?preset=demo"' in page


def test_it_writes_nothing(client_of):
    forecast_of(client_of("member"))
    assert not SeedPool.objects.exists()
    assert not Run.objects.exists()


def test_a_larger_pool_takes_no_more_queries(client_of):
    client = client_of("member")
    counts = []
    for size in (12, 300):
        pool = make.make_pool(f"pool {size}", size=size)
        data = filled(client, seed_pool=str(pool.pk))
        with CaptureQueriesContext(connection) as context:
            assert client.post("/runs/forecast?preset=demo", data, headers=HTMX).status_code == 200
        counts.append(len(context))
    assert counts[0] == counts[1] <= 14


def test_nobody_less_than_a_member_forecasts(client_of, client):
    assert client_of("viewer").post("/runs/forecast?preset=demo", {}).status_code == 403
    assert client.post("/runs/forecast?preset=demo", {}).status_code == 302
    assert client_of("member").get("/runs/forecast?preset=demo").status_code == 405


def test_a_hostile_endpoint_name_stays_text(client_of, person):
    run = make.make_run(person("member"))
    make.make_line(run, endpoint="<script>alert(1)</script>")
    assert "<script>alert" not in body(client_of("member").get(f"/runs/{run.pk}/ledger"))


# The budget of a launch


def test_a_launch_keeps_its_budget(client_of):
    client = client_of("member")
    client.post("/runs/new?preset=demo", filled(client, most_dollars="$1,012.50", most_calls="5,000"))
    budget = Budget.objects.get()
    assert (budget.run, budget.most_nanodollars, budget.most_calls) == (Run.objects.get(), 1_012_500_000_000, 5000)
    assert budget.set_by.get_username() == "member"


def test_a_launch_without_one_has_none(client_of):
    client = client_of("member")
    client.post("/runs/new?preset=demo", filled(client))
    assert Run.objects.exists()
    assert not Budget.objects.exists()


@pytest.mark.parametrize(
    ("name", "typed", "complaint"),
    [
        ("most_dollars", "-1", "A budget is more than 0."),
        ("most_dollars", "0", "A budget is more than 0."),
        ("most_dollars", "twelve", "Give an amount in dollars, for instance 12.50."),
        ("most_dollars", "nan", "Give an amount in dollars"),
        ("most_dollars", "1e9", "Give an amount in dollars"),
        ("most_dollars", "999999999999999999999", "The most is $100,000,000."),
        ("most_calls", "0", "A budget is more than 0."),
        ("most_calls", "-5", "A budget is more than 0."),
        ("most_calls", "1.5", "Give a whole number of calls"),
        ("most_calls", "9" * 30, "The most is 10,000,000,000."),
    ],
)
def test_a_bad_budget_is_refused_beside_its_field_and_kept(client_of, name, typed, complaint):
    client = client_of("member")
    response = client.post("/runs/new?preset=demo", filled(client, **{name: typed}))
    assert response.status_code == 422
    assert complaint in text_of(field_of(body(response), name))
    assert f'value="{typed}"' in field_of(body(response), name)
    assert not Run.objects.exists()


def test_a_clone_shows_the_budget_of_its_run_and_does_not_copy_it(client_of, person):
    source = make.make_run(person("member"), name="calm-lion-1")
    Budget.objects.create(run=source, most_calls=5000, most_nanodollars=12_500_000_000)
    response = client_of("member").get(f"/runs/new?from={source.pk}")
    assert "calm-lion-1 had a budget of $12.50 and 5,000 calls" in text_of(body(response))
    assert response.context["form"]["most_calls"].value() is None
    assert response.context["form"]["most_dollars"].value() is None


def test_the_judge_may_have_its_own_endpoint(client_of, big):
    client = client_of("member")
    client.post("/runs/new?preset=demo", filled(client, judge_endpoint="big"))
    config = Run.objects.get().run_config()
    assert config.judge.endpoint == "big"
    assert "big" in config.endpoints
    assert client.get(f"/runs/new?from={Run.objects.get().pk}").context["form"]["judge_endpoint"].value() == "big"


def test_the_launch_form_takes_no_more_queries_for_more_runs(client_of, person):
    def add() -> None:
        for i in range(3):
            make.make_ledger(make.make_run(person("member"), name=f"run {i}"))

    assert asks_the_same_of(client_of("member"), "/runs/new?preset=demo", after=add) <= 14
