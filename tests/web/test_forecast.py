"""The forecast on the launch form: for what is chosen, with what it rests on, and against the budget."""

import re
from dataclasses import replace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from experiments.models import Budget, Completion, Endpoint, Pace, Response, Role, Run, SeedInstruction, SeedPool
from experiments.services import forecasts
from tests import make
from tests.web.pages import asks_the_same_of, body, text_of
from tests.web.test_launch import field_of, filled
from trainer import pacing
from trainer.completions import completion_key
from trainer.forecast import Forecast
from trainer.pace_parts import FoundRate
from trainer.plan import Stage, Step
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


def set_pace(endpoint: Endpoint, **state: object) -> None:
    """What the workers would have learnt of an endpoint's server."""
    learnt = pacing.Pace(**state).as_dict()
    Pace.objects.create(base_url=endpoint.base_url, model=endpoint.model, key_env=endpoint.key_env, state=learnt)


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
    assert "Calls 10,035 and 2,586 answered by the store" in page  # the run itself: 9,968 and 2,599
    assert "Cost $0 " in page
    assert "Time of the calls 59 s the student's own time comes on top: about 3 min in the demo as it is, on two cores" in page
    assert "measured in the demo" in page
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
    assert forecast.lines[0].saved == 0


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
    page = text_of(body(response))
    # a batch for each step of the teacher and the referee, and five rounds of candidates in each iteration: 600, 150, 38, 9, 2
    assert "Time of the calls up to 24 h for each of 22 batches or more" in page
    assert "1 batch, up to 24 h each" in page
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
    assert "The forecast needs: Iterations. Iterations: 'many' is not a whole number." in refused


def test_batch_mode_where_there_is_none_says_what_to_do(client_of, big):
    page = text_of(body(forecast_of(client_of("member"), endpoint="big", **{"referee.batch": "on"})))
    assert "The forecast needs: Referee, Batch mode." in page
    assert "Endpoint 'big' does not offer the Batch API. Turn batch mode off, or say on the endpoint that it does." in page


def test_the_pace_that_was_found_says_how_long_the_calls_take(client_of, person, big):
    run = make.make_run(person("member"))
    make.make_completions(make.make_line(run, endpoint="big"), 20, latency_s=0.05)
    quick = forecast_of(client_of("member"), endpoint="big").context["forecast"]
    assert quick.lines[0].seconds == pytest.approx(1500 * 0.05 / 10)
    set_pace(big, found=FoundRate(estimate=18, climbed_s=2.0))
    paced = forecast_of(client_of("member"), endpoint="big").context["forecast"]
    assert paced.lines[0].seconds == pytest.approx(1500 / 18)
    assert any("1,080 requests a minute (found by trying)" in sentence for sentence in paced.assumptions)
    assert "A call of the teacher takes 50 ms: seen." in paced.assumptions


def test_the_pace_of_another_server_says_nothing(client_of, big):
    other = Endpoint(base_url="https://other.example/v1", model=big.model, key_env="")
    set_pace(other, told={"requests": 1})
    assumptions = forecast_of(client_of("member"), endpoint="big").context["forecast"].assumptions
    assert any("'big' takes 10 calls at once, no other limit is known" in sentence for sentence in assumptions)


def test_a_bad_budget_does_not_hide_the_forecast(client_of):
    assert "Calls 10,035" in text_of(body(forecast_of(client_of("member"), most_dollars="lots")))


def test_without_scripts_a_button_gives_the_whole_page_with_everything_typed(client_of):
    client = client_of("member")
    response = client.post("/runs/forecast?preset=demo", filled(client, run_name="typed-by-hand"))
    page = body(response)
    assert "</html>" in page
    assert 'value="typed-by-hand"' in page
    assert "Calls 10,035" in text_of(page)
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
    assert client_of("member").get("/runs/forecast?preset=demo").headers["Location"] == "/runs/new?preset=demo"


# The rest of a run


def rest_of(client_of, run: Run) -> Forecast:
    rest: Forecast = client_of("viewer").get(f"/runs/{run.pk}/live").context["costs"].rest
    return rest


def test_the_forecast_of_a_step_under_way_says_what_the_step_says(client_of, person):
    """The pace knows nothing, and a call takes next to no time: it is the step that goes so slowly."""
    run = make.make_run_until(person("member"), 0, Step.TEACHER_RESPONSES, seeds=1100)
    make.make_completions(make.make_line(run), 20, latency_s=0.01)
    make.make_job(run.iterations.get(), Stage.IMITATION, Step.TEACHER_RESPONSES, items_total=1100, items_before=34, items_done=51)
    response = client_of("viewer").get(f"/runs/{run.pk}/live")
    _, _, step = response.context["board"].now[0]
    line = response.context["costs"].rest.lines[0]
    assert step.per_s == pytest.approx(17 / 100, rel=0.05)
    assert line.calls == 1049
    assert line.seconds == pytest.approx(step.left.total_seconds(), rel=0.01)
    assert "goes on at the rate seen so far: 10." in text_of(body(response))


def test_what_the_rows_tell_before_the_next_heartbeat_is_no_more_to_come(client_of, person):
    run = make.make_run_until(person("member"), 0, Step.TEACHER_RESPONSES)
    iteration = run.iterations.get()
    make.make_job(iteration, Stage.IMITATION, Step.TEACHER_RESPONSES, items_total=12, items_done=2)
    for instruction in run.instructions.all()[:9]:
        Response.objects.create(instruction=instruction, iteration=iteration, role=Role.TEACHER, text="said")
    line = rest_of(client_of, run).lines[0]
    assert line.calls == 3
    assert line.seconds == pytest.approx(3 / (9 / 100), rel=0.05)


def test_a_step_to_come_keeps_to_the_limits_that_headers_told(client_of, person, big):
    config = make.make_config(iterations=1)
    names = {role: replace(getattr(config, role), endpoint="big") for role in ("teacher", "referee", "generator")}
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES, config=replace(config, endpoints={"big": big.config()}, **names))
    set_pace(big, told={"requests": 60})
    candidates, teacher = rest_of(client_of, run).lines
    assert (candidates.calls, teacher.calls) == (11, 8)
    assert (candidates.seconds, teacher.seconds) == pytest.approx((11 / 0.98, 8 / 0.98))


def test_what_needed_one_call_in_an_iteration_says_it_of_the_next(client_of, person):
    run = make.make_run_until(person("member"), 2, Step.JUDGEMENTS, seeds=100)
    line = make.make_line(run, iteration=1, stage="discrimination", role="referee", saved=20)
    make.make_completions(line, 110)
    rest = rest_of(client_of, run)
    referee = rest.lines[0]
    assert (referee.iteration, referee.role) == (2, "referee")
    assert referee.calls + referee.saved == round(1.3 * 108)  # of the 100 judged before, 30 had both orders
    assert any("That is 70 % of what is judged: seen in iteration 1." in sentence for sentence in rest.assumptions)


def test_a_judgement_asked_for_again_is_not_taken_for_one_that_needed_two_calls(client_of, person):
    run = make.make_run_until(person("member"), 2, Step.JUDGEMENTS, seeds=100)
    line = make.make_line(run, iteration=1, stage="discrimination", role="referee")
    again = make.make_completions(line, 165)[:15]
    for completion in again:
        Completion.objects.filter(pk=completion.pk).update(request=completion.request | {"sample": 1})
    rest = rest_of(client_of, run)
    assert any("That is 50 % of what is judged: seen in iteration 1." in sentence for sentence in rest.assumptions)
    assert rest.lines[0].calls + rest.lines[0].saved == round(108 * 1.5 * 1.1)


def test_the_run_page_says_that_identical_answers_need_one_call(client_of, person):
    run = make.make_finished_run(person("member"))
    make.make_ledger(run)
    assert "identical answers need one call" in text_of(body(client_of("viewer").get(f"/runs/{run.pk}/")))


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


def test_a_run_like_another_has_its_endpoint_and_not_one_at_the_same_address(client_of, big):
    Endpoint.objects.create(name="another", base_url=big.base_url, model=big.model, key_env="", price_input=9.0)
    client = client_of("member")
    client.post("/runs/new?preset=demo", filled(client, endpoint="big"))
    assert client.get(f"/runs/new?from={Run.objects.get().pk}").context["form"]["endpoint"].value() == "big"


def test_the_launch_form_takes_no_more_queries_for_more_runs(client_of, person):
    def add() -> None:
        for i in range(3):
            make.make_ledger(make.make_run(person("member"), name=f"run {i}"))

    assert asks_the_same_of(client_of("member"), "/runs/new?preset=demo", after=add) <= 14
