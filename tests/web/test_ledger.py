"""The ledger adds up, and each of its numbers opens the completions behind it; a completion shows all that is known of a call."""

import re

import pytest
from django.utils import timezone

from experiments.models import Budget, Completion, Judgement, LedgerLine, Response
from experiments.templatetags.lionweb import amount, dollars
from experiments.templatetags.money import exact_dollars
from tests import make
from tests.web.pages import asks_the_same_of, body, links, text_of, total
from trainer.plan import Step

FIELDS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "nanodollars", "unanswered", "limited", "failed", "saved")


@pytest.fixture
def run(person):
    run = make.make_finished_run(person("member"))
    make.make_ledger(run, cost=1_500_000)
    return run


def test_the_lines_add_up_to_the_subtotals_and_these_to_the_total(client_of, run):
    LedgerLine.objects.filter(role="referee").update(unanswered=2, limited=3, failed=4)
    ledger = client_of("viewer").get(f"/runs/{run.pk}/ledger").context["ledger"]
    assert [group.number for group in ledger.groups] == [0, 1, 2]
    for name in FIELDS:
        for group in ledger.groups:
            assert getattr(group.sums, name) == sum(getattr(line, name) for line in group.lines)
        assert getattr(ledger.total, name) == sum(getattr(group.sums, name) for group in ledger.groups)
    assert ledger.total.calls == Completion.objects.count() == 21


def test_lines_stand_in_the_order_of_the_loop(client_of, run):
    groups = client_of("viewer").get(f"/runs/{run.pk}/ledger").context["ledger"].groups
    assert [line.stage for line in groups[1].lines] == ["discrimination", "generation", "imitation"]


def test_every_number_of_calls_opens_as_many_completions(client_of, run):
    client = client_of("viewer")
    opened = [(url, text) for url, text in links(body(client.get(f"/runs/{run.pk}/ledger"))) if "/completions" in url]
    assert len(opened) == 7 + 2 + 1  # a line each, two iterations with more than one, and all
    for url, text in opened:
        assert total(body(client.get(url))) == int(text), url


def test_the_check_is_counted_from_the_completions_themselves(client_of, run):
    client = client_of("viewer")
    assert "Adds up to 21 completions" in text_of(body(client.get(f"/runs/{run.pk}/ledger")))
    Completion.objects.filter(line__role="generator", line__iteration__number=2).first().delete()
    page = text_of(body(client.get(f"/runs/{run.pk}/ledger")))
    assert "The ledger counts 21 calls, and 20 completions are kept for it." in page
    assert "They differ in: iteration 2, generation, generator" in page


def test_what_was_paid_before_stages_were_written_down_has_a_line(client_of, run):
    old = LedgerLine.objects.create(run=run, endpoint="offline", role="")
    make.make_completions(old, 4)
    response = client_of("viewer").get(f"/runs/{run.pk}/ledger")
    assert response.context["ledger"].groups[0].number is None
    assert "Before stages were written down" in text_of(body(response))
    assert "Adds up to 25 completions" in text_of(body(response))


def test_what_the_store_saved_is_told(client_of, run):
    total_row = body(client_of("viewer").get(f"/runs/{run.pk}/ledger")).split('id="ledger-total"')[1]
    assert "14" in text_of(total_row)
    assert "$0.0000035" in text_of(total_row)


def unanswered(run):
    """Calls of the referee that were sent and not answered."""
    run.ledger.filter(role="referee").update(unanswered=2, unanswered_nanodollars=30_000_000)


def test_paid_and_unanswered_calls_add_up_to_what_counts_in_the_budget(client_of, run):
    unanswered(run)
    Budget.objects.create(run=run, most_nanodollars=4_000_000_000)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/ledger"))
    foot = text_of(page[page.index('id="ledger-total"') :].partition("</tfoot>")[0])
    assert "$0.0315 $0.06 for 4" in foot
    assert "Counts in the budget 25 $0.0915" in foot
    assert "$0.09 of $4.00 spent" in text_of(page)


def test_the_run_page_adds_up_with_unanswered_calls_too(client_of, run):
    unanswered(run)
    page = body(client_of("viewer").get(f"/runs/{run.pk}/"))
    assert "Spent so far $0.09 21 calls $0.06 of it for 4 unanswered, at the most" in text_of(page)
    foot = text_of(page[page.index('id="costs-details"') :].partition("<tfoot>")[2].partition("</tfoot>")[0])
    assert foot == "Together 21 $0.0315 $0.06 for 4 \N{EN DASH} \N{EN DASH} Spent so far 25 $0.0915"


def test_where_every_call_was_answered_there_is_no_second_sum(client_of, run):
    client = client_of("viewer")
    assert "Counts in the budget" not in body(client.get(f"/runs/{run.pk}/ledger"))
    assert 'id="costs-counted"' not in body(client.get(f"/runs/{run.pk}/"))


def test_calls_whose_tokens_were_counted_by_us_are_marked(client_of, run):
    client = client_of("viewer")
    pages = [f"/runs/{run.pk}/ledger", f"/runs/{run.pk}/", f"/runs/{run.pk}/completions"]
    assert not [url for url in pages if "ounted by us" in body(client.get(url))]
    Completion.objects.filter(line__role="referee").update(estimated=True)
    ledger = text_of(body(client.get(pages[0])))
    assert "Of these 21 calls, the tokens of 6 were counted by us" in ledger
    assert ledger.count("referee offline 3 counted by us") == 2
    assert "generator offline 3 counted by us" not in ledger
    assert "an estimate: some tokens are counted by us" in text_of(body(client.get(pages[1])))
    assert "about 60" in text_of(body(client.get(f"{pages[2]}?role=referee")))


def test_the_columns_are_explained(client_of, run):
    page = text_of(body(client_of("viewer").get(f"/runs/{run.pk}/ledger")))
    for words in (
        "Input tokens Cached Output tokens",
        "HTTP 429, too many requests",
        "a batch left the call out",
        "answered from the store",
    ):
        assert words in page


def test_a_run_without_calls_has_a_ledger(client_of, person):
    run = make.make_run(person("member"))
    assert "No call was made yet." in text_of(body(client_of("viewer").get(f"/runs/{run.pk}/ledger")))


def test_a_longer_ledger_takes_no_more_queries(client_of, run):
    def add() -> None:
        for i in range(5):
            make.make_completions(make.make_line(run, iteration=2, endpoint=f"endpoint-{i}"), 3)

    assert asks_the_same_of(client_of("viewer"), f"/runs/{run.pk}/ledger", after=add) <= 11


# Completions


@pytest.mark.parametrize(
    ("query", "amount"),
    [
        ("", 21),
        ("role=teacher", 9),
        ("role=referee&iteration=2", 3),
        ("stage=imitation", 9),
        ("iteration=1", 9),
        ("good=no", 1),
        ("good=yes", 20),
    ],
)
def test_the_filters_are_in_the_url(client_of, run, query, amount):
    cut_off = Completion.objects.filter(line__role="referee").first()
    Completion.objects.filter(pk=cut_off.pk).update(finish_reason="length")
    assert total(body(client_of("viewer").get(f"/runs/{run.pk}/completions?{query}"))) == amount


def test_what_is_no_filter_is_said_and_left_out(client_of, run):
    response = client_of("viewer").get(f"/runs/{run.pk}/completions?role=nobody&line=x")
    assert "It was left out." in body(response)
    assert total(body(response)) == 21


def test_a_filter_that_there_is_not_is_said_and_left_out(client_of, run):
    page = body(client_of("viewer").get(f"/runs/{run.pk}/completions?reply=cut&page=1"))
    assert "There is no filter reply. It was left out." in text_of(page)
    assert "There is no filter page" not in text_of(page)
    assert total(page) == 21


def test_the_newest_call_comes_first(client_of, run):
    line = run.ledger.latest("id")
    newest = line.completions.order_by("key")[1]
    Completion.objects.filter(pk=newest.pk).update(created_at=timezone.now())
    page = body(client_of("viewer").get(f"/runs/{run.pk}/completions"))
    assert re.findall(r'<th scope="row" class="mono"><a href="/completions/(\w+)/">', page)[0] == newest.pk


def test_a_line_of_another_run_opens_nothing(client_of, run, person):
    other = make.make_run(person("member"), name="other")
    line = make.make_line(other)
    make.make_completions(line, 3)
    assert total(body(client_of("viewer").get(f"/runs/{run.pk}/completions?line={line.pk}"))) == 0


def test_a_long_list_is_paged_and_no_completion_is_on_two_pages(client_of, run):
    make.make_completions(LedgerLine.objects.filter(role="teacher").first(), 100)
    client = client_of("viewer")
    keys = [
        re.findall(
            r'<th scope="row" class="mono"><a href="/completions/(\w+)/">', body(client.get(f"/runs/{run.pk}/completions?page={page}"))
        )
        for page in (1, 2, 3)
    ]
    assert [len(page) for page in keys] == [50, 50, 21]
    assert len({key for page in keys for key in page}) == 121


def test_more_completions_take_no_more_queries(client_of, run):
    def add() -> None:
        make.make_completions(LedgerLine.objects.filter(role="teacher").first(), 40)

    assert asks_the_same_of(client_of("viewer"), f"/runs/{run.pk}/completions", after=add) <= 9


def test_a_filter_asks_for_the_list_alone(client_of, run):
    page = body(client_of("viewer").get(f"/runs/{run.pk}/completions", headers={"HX-Request": "true"}))
    assert page.lstrip().startswith('<div id="list">')


def test_a_completion_tells_all_that_is_known_of_a_call(client_of, run):
    response = Response.objects.filter(role="teacher", completion__isnull=False).select_related("instruction").first()
    page = body(client_of("viewer").get(f"/completions/{response.completion_id}/"))
    text = text_of(page)
    for told in ("You help people.", "Task 0", "reply 0", "temperature", "0.7", "60 in, 20 out", "$0.0015", "iteration 0, imitation"):
        assert told in text, told
    assert f'href="/instructions/{response.instruction_id}/"' in page
    assert f'href="/runs/{run.pk}/"' in page


def test_each_use_of_a_completion_is_linked(client_of, run):
    judgement = Judgement.objects.filter(completion__isnull=False).select_related("iteration").first()
    page = body(client_of("viewer").get(f"/completions/{judgement.completion_id}/"))
    assert f"/instructions/{judgement.instruction_id}/?iteration={judgement.iteration.number}" in page


def test_an_instruction_leads_to_its_calls(client_of, run):
    response = Response.objects.filter(role="teacher", completion__isnull=False).first()
    page = body(client_of("viewer").get(f"/instructions/{response.instruction_id}/"))
    assert f"/completions/{response.completion_id}/" in page


def test_a_completion_whose_run_is_gone_still_has_its_page(client_of, run):
    completion = Completion.objects.first()
    Completion.objects.filter(pk=completion.pk).update(line=None)
    assert "no run that is still there" in text_of(body(client_of("viewer").get(f"/completions/{completion.pk}/")))


def test_an_unknown_key_is_not_found(client_of):
    assert "There is no such call." in text_of(body(client_of("viewer").get(f"/completions/{'0' * 64}/")))
    assert client_of("viewer").get(f"/completions/{'0' * 64}/").status_code == 404
    assert client_of("viewer").get("/completions/x/").status_code == 404


def test_hostile_texts_stay_text(client_of, run):
    hostile = "</pre><script>alert(1)</script>"
    completion = Completion.objects.first()
    completion.text = completion.finish_reason = hostile[:30]
    completion.request["messages"][1]["content"] = completion.request["extra"] = hostile
    completion.save()
    client = client_of("viewer")
    for url in (f"/completions/{completion.pk}/", f"/runs/{run.pk}/completions"):
        assert "<script>alert" not in body(client.get(url))


def test_a_completion_takes_few_queries(client_of, run):
    completion = Completion.objects.first()
    assert asks_the_same_of(client_of("viewer"), f"/completions/{completion.pk}/", after=lambda: None) <= 7


def test_the_runs_of_an_experiment_show_their_cost(client_of, run):
    page = body(client_of("viewer").get(f"/experiments/{run.experiment_id}/"))
    assert re.search(rf'<a href="/runs/{run.pk}/ledger" title="21 calls">\$0.03</a>', page)


def test_a_stranger_sees_no_call(client, run):
    completion = Completion.objects.first()
    for url in (f"/runs/{run.pk}/ledger", f"/runs/{run.pk}/completions", f"/completions/{completion.pk}/"):
        assert client.get(url).headers["Location"].startswith("/sign-in/")


# The run page


def test_the_run_page_tells_what_is_spent_saved_and_still_to_come(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_completions(make.make_line(run, saved=3, saved_nanodollars=2_000_000_000), 12, cost=100_000_000)
    response = client_of("viewer").get(f"/runs/{run.pk}/")
    costs = response.context["costs"]
    page = text_of(body(response))
    assert "Spent so far $1.20 12 calls" in page
    assert "Saved by the store $2.00 3 calls" in page
    assert f"about {costs.rest.calls + 12} calls" in page


def test_the_forecast_goes_by_what_this_run_has_seen(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS)
    make.make_completions(make.make_line(run), 20, prompt_tokens=70, completion_tokens=33, latency_s=4.0)
    rest = client_of("viewer").get(f"/runs/{run.pk}/live").context["costs"].rest
    assert "The teacher reads 70 tokens a call and answers in 33 on average: seen in 20 calls of this run." in rest.assumptions
    assert "A call of the teacher takes 4.0 s: seen." in rest.assumptions


def test_the_rest_shrinks_with_what_is_done(client_of, person):
    run = make.make_run_until(person("member"), 0, Step.TEACHER_RESPONSES)
    before = client_of("viewer").get(f"/runs/{run.pk}/live").context["costs"].rest
    make.make_job(run.iterations.get(), make.StageName.IMITATION, Step.TEACHER_RESPONSES, items_total=12, items_done=9)
    after = client_of("viewer").get(f"/runs/{run.pk}/live").context["costs"].rest
    assert (before.lines[0].calls, after.lines[0].calls) == (12, 3)


def test_a_finished_run_needs_nothing_more(client_of, run):
    response = client_of("viewer").get(f"/runs/{run.pk}/")
    assert response.context["costs"].rest is None
    assert "Still to come" not in text_of(body(response))


def test_more_of_a_run_takes_no_more_queries_on_its_page(client_of, person):
    owner = person("member")
    run = make.make_run_until(owner, 1, Step.JUDGEMENTS)
    make.make_completions(make.make_line(run), 20)

    def add() -> None:
        make.make_completions(make.make_line(run, iteration=1), 40)

    assert asks_the_same_of(client_of("viewer"), f"/runs/{run.pk}/live", after=add) <= 24


# Filters


@pytest.mark.parametrize(
    ("nanodollars", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "$0"),
        (12_340_000_000, "$12.34"),
        (1_234_567_000_000, "$1,234.57"),
        (420_000_000, "$0.42"),
        (10_000_000, "$0.01"),
        (4_200_000, "$0.0042"),
        (1, "$0.0000000010"),
    ],
)
def test_money_is_told_with_the_digits_that_matter(nanodollars, text):
    assert dollars(nanodollars) == text


@pytest.mark.parametrize(
    ("nanodollars", "text"), [(0, "$0"), (44_300_500, "$0.0443005"), (1_234_500_000_000, "$1,234.50"), (1, "$0.000000001")]
)
def test_money_in_sums_has_all_its_digits(nanodollars, text):
    assert exact_dollars(nanodollars) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999_999, "999,999"), (1_000_000, "1 M"), (390_512_000, "391 M"), (2_340_000_000, "2.34 G")]
)
def test_large_amounts_are_told_in_millions(value, text):
    assert amount(value) == text
