"""Endpoints: everybody sees them, a member tests them, an admin sets them, and no key is ever kept."""

from dataclasses import fields

import pytest
from django.utils import timezone

from experiments.endpoint_form import EndpointForm
from experiments.models import Batch, Budget, Endpoint, LedgerLine, Pace, PendingCall
from experiments.templatetags.money import price
from tests import make
from tests.http_server import Answer, Server, refused, running, said
from tests.web.pages import asks_the_same_of, body, links, text_of
from trainer.config import EndpointConfig
from trainer.plan import Stage, Step

GOOD = {
    "name": "big",
    "base_url": "https://api.example.com/v1/",
    "model": "big-model",
    "key_env": "BIG_KEY",
    "price_input": "0.15",
    "price_cached": "0.075",
    "price_output": "0.6",
    "rpm": "500",
    "input_tpm": "200000",
    "output_tpm": "40000",
    "max_at_once": "8",
    "timeout_s": "60",
    "connect_timeout_s": "5",
    "retries": "5",
    "structured": "json_schema",
    "length_parameter": "max_completion_tokens",
    "send_seed": "on",
    "extra": '{"reasoning_effort": "low"}',
    "batch_api": "on",
}
WANTED = EndpointConfig(
    base_url="https://api.example.com/v1",
    model="big-model",
    key_env="BIG_KEY",
    price_input=0.15,
    price_cached=0.075,
    price_output=0.6,
    rpm=500,
    input_tpm=200_000,
    output_tpm=40_000,
    max_at_once=8,
    timeout_s=60,
    connect_timeout_s=5,
    retries=5,
    structured="json_schema",
    length_parameter="max_completion_tokens",
    send_seed=True,
    extra='{"reasoning_effort": "low"}',
    batch_api=True,
)


@pytest.fixture
def big(db):
    return Endpoint.objects.create(name="big", base_url="https://api.example.com/v1", model="big-model", key_env="BIG_KEY")


@pytest.fixture
def server():
    with running(Server()) as it:
        yield it


@pytest.fixture
def local(db, server):
    """An endpoint whose server is really there."""
    return Endpoint.objects.create(name="local", base_url=server.url, model="m", price_input=1, price_output=2)


# The form


def test_an_admin_adds_and_changes_one(client_of):
    client = client_of("admin")
    response = client.post("/endpoints/new", GOOD, follow=True)
    endpoint = Endpoint.objects.get()
    assert response.redirect_chain == [(f"/endpoints/{endpoint.pk}/", 302)]
    assert "Saved big. Test it before a run does." in text_of(body(response))
    assert endpoint.config() == WANTED
    client.post(f"/endpoints/{endpoint.pk}/edit", {**GOOD, "model": "bigger"})
    endpoint.refresh_from_db()
    assert endpoint.model == "bigger"


def test_the_form_has_every_setting_of_an_endpoint_once_with_its_unit(client_of):
    shown = [field.name for section in EndpointForm().sections for field in section.fields]
    assert sorted(shown) == sorted(["name", *(field.name for field in fields(EndpointConfig))])
    page = text_of(body(client_of("admin").get("/endpoints/new")))
    for words in ("Where", "Prices", "Limits", "How it is asked", "$ per million tokens, 0 to 10,000.", "s, 1 to 3,600."):
        assert words in page


def test_a_new_one_begins_with_the_trainers_own_values_and_so_does_what_is_left_empty(client_of):
    client = client_of("admin")
    assert 'name="max_at_once" value="16"' in body(client.get("/endpoints/new"))
    assert client.post("/endpoints/new", {"name": "bare", "base_url": "https://a.example/v1", "model": "m", "rpm": ""}).status_code == 302
    config = Endpoint.objects.get().config()
    assert config == EndpointConfig(base_url="https://a.example/v1", model="m", key_env="")


@pytest.mark.parametrize(
    ("field", "typed", "complaint"),
    [
        ("base_url", "ftp://example.com/v1", "http:// or https://"),
        ("base_url", "javascript:alert(1)", "http:// or https://"),
        ("base_url", "http://[bad/v1", "http:// or https://"),
        ("base_url", "http://a.example:99999/v1", "A port is a whole number from 1 to 65535."),
        ("base_url", "http://a.example:0/v1", "A port is a whole number"),
        ("base_url", "https://a.example/v1/chat/completions", "Leave /chat/completions out: each call adds it."),
        ("base_url", "https://a.example/v1/chat/completions/", "Leave /chat/completions out"),
        ("base_url", "http://a.example:99999/v1?key=1", "A port is a whole number from 1 to 65535. What may be a key in it was left out."),
        ("base_url", "https://me:secret@example.com/v1", "No name or password"),
        ("base_url", "http://10.0.0.5:8000/v1", "10.0.0.5 is a private address"),
        ("base_url", "http://169.254.169.254/latest", "to LIONWEB_PRIVATE_HOSTS"),
        ("base_url", "http://0xa9fea9fe/v1", "is a private address"),
        ("base_url", "https://example.com/v1?api-key=0123456789abcdef", "Nothing after a ? or # in the address"),
        ("price_cached", "7", "Cached input at $7 is dearer than other input at $0.15"),
        ("name", "offline", "the name of the demo"),
        ("name", "two words", "Letters, digits, - and _ only"),
        ("key_env", "AIzaSyD4abcdefghijklmnop", "Not the name of a variable"),
        ("key_env", "sk-proj-abcdefghijklmnop", "looks like a key"),
        ("key_env", "MY KEY", "Not the name of a variable"),
        ("key_env", "1KEY", "Not the name of a variable"),
        ("key_env", "SECRET_KEY", "a setting of LionWeb"),
        ("key_env", "DATABASE_URL", "a setting of LionWeb"),
        ("key_env", "celery_broker_url", "Not the name of a variable"),
        ("key_env", "LIONWEB_DATA", "a setting of LionWeb"),
        ("key_env", "DJANGO_SETTINGS_MODULE", "a setting of LionWeb"),
        ("price_input", "-1", "Must be from 0 to 10,000."),
        ("price_output", "cheap", "Give a price in dollars, for instance 2.50."),
        ("price_output", "1,50", "1,50 can be read in more than one way. Write decimals as in 1.50"),
        ("rpm", "1.5", "Give a whole number, for instance 3,000."),
        ("rpm", "3.000,00", "can be read in more than one way"),
        ("rpm", "$3", "Give a whole number"),
        ("rpm", "99999999", "Must be from 0 to 10,000,000."),
        ("max_at_once", "0", "Must be from 1 to 512."),
        ("input_tpm", "9" * 30, "Must be from 0 to 10,000,000,000."),
        ("timeout_s", "nan", "Give a number, for instance 2.5."),
        ("connect_timeout_s", "0", "Must be from 0.1 to 300."),
        ("retries", "-1", "Must be from 0 to 50."),
        ("structured", "xml", "Choose one from the list."),
        ("extra", "reasoning: low", "This is not JSON"),
        ("extra", '["low"]', "Give a JSON object"),
        ("extra", '{"model": "other"}', "model cannot be set here"),
        ("extra", '{"api_key": "0123"}', "api_key cannot be set here, since every call is stored"),
        ("extra", "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_value_is_refused_beside_its_field(client_of, field, typed, complaint):
    response = client_of("admin").post("/endpoints/new", {**GOOD, field: typed})
    page = body(response)
    part = page[page.index(f'class="field field-{field}') :]
    assert response.status_code == 422
    assert complaint in text_of(part.partition('class="field field-')[2].partition('class="field field-')[0])
    assert not Endpoint.objects.exists()


def test_numbers_are_read_as_budgets_read_them(client_of):
    typed = {"rpm": "3,000", "input_tpm": "1,000,000", "price_input": "$3", "price_output": " 1,250.5 ", "timeout_s": "1,200"}
    assert client_of("admin").post("/endpoints/new", {**GOOD, **typed}).status_code == 302
    endpoint = Endpoint.objects.get()
    assert (endpoint.rpm, endpoint.input_tpm, endpoint.price_input, endpoint.price_output) == (3000, 1_000_000, 3, 1250.5)
    assert endpoint.timeout_s == 1200


def test_a_very_small_price_comes_back_in_the_form_as_it_can_be_typed(client_of, big):
    Endpoint.objects.update(price_input=1e-7)
    client = client_of("admin")
    assert client.get(f"/endpoints/{big.pk}/edit").context["form"]["price_input"].value() == "0.0000001"
    assert client.post(f"/endpoints/{big.pk}/edit", {**GOOD, "price_input": "0.0000001", "price_cached": "0"}).status_code == 302


def test_a_name_that_is_taken_is_said_in_words(client_of, big):
    response = client_of("admin").post("/endpoints/new", GOOD)
    assert "There is an endpoint of this name, perhaps an archived one. Choose another." in text_of(body(response))


@pytest.mark.parametrize("other", [{}, {"rpm": "many"}], ids=["alone", "beside another complaint"])
@pytest.mark.parametrize(
    "url", ["https://a.example/v1?api-key=0123456789", "https://a.example/v1#0123456789", "https://me:0123456789@a.example/v1"]
)
def test_a_key_in_an_address_is_refused_and_does_not_come_back_on_the_page(client_of, url, other):
    page = body(client_of("admin").post("/endpoints/new", {**GOOD, **other, "base_url": url}))
    assert "in the address, which is stored with every call" in text_of(page)
    assert "0123456789" not in page
    assert 'value="https://a.example/v1"' in page


def test_a_pasted_key_does_not_come_back_on_the_page(client_of):
    page = body(client_of("admin").post("/endpoints/new", {**GOOD, "key_env": "sk-proj-abcdefghijklmnop"}))
    assert "sk-proj-abcdefghijklmnop" not in page


@pytest.mark.parametrize("url", ["http://vllm:8000/v1", "http://127.0.0.1:8000/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"])
def test_a_host_of_one_word_and_this_machine_are_addresses_too(client_of, url):
    assert client_of("admin").post("/endpoints/new", {**GOOD, "base_url": url}).status_code == 302
    assert Endpoint.objects.get().base_url == url


def test_a_private_network_that_is_allowed_may_be_typed(client_of, settings):
    settings.LIONWEB_PRIVATE_HOSTS = ["10.0.0.0/8"]
    assert client_of("admin").post("/endpoints/new", {**GOOD, "base_url": "http://10.0.0.5:8000/v1"}).status_code == 302


def test_editing_says_what_holds_for_runs_that_are_under_way(client_of, big):
    client = client_of("admin")
    said = "hold at once, for runs that are under way as well, but for more calls at once, which the next step takes up; address, model"
    assert said in text_of(body(client.get(f"/endpoints/{big.pk}/edit")))
    assert said in text_of(body(client.post(f"/endpoints/{big.pk}/edit", GOOD, follow=True)))


def test_a_name_that_the_ledger_knows_stays(client_of, big):
    LedgerLine.objects.create(role="teacher", endpoint="big", calls=1)
    client = client_of("admin")
    assert "It stays" in text_of(body(client.get(f"/endpoints/{big.pk}/edit")))
    client.post(f"/endpoints/{big.pk}/edit", {**GOOD, "name": "renamed", "rpm": "7"})
    big.refresh_from_db()
    assert (big.name, big.rpm) == ("big", 7)


# The list


def test_the_list_says_whether_the_key_is_set_here_and_never_the_key(client_of, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-the-secret")
    monkeypatch.delenv("OTHER_KEY", raising=False)
    Endpoint.objects.create(name="big", base_url="https://a.example/v1", model="m", key_env="BIG_KEY")
    Endpoint.objects.create(name="other", base_url="https://b.example/v1", model="m", key_env="OTHER_KEY")
    page = body(client_of("viewer").get("/endpoints/"))
    assert "BIG_KEY set here" in text_of(page)
    assert "OTHER_KEY not set here" in text_of(page)
    assert "sk-the-secret" not in page


def test_the_list_shows_prices_limits_and_state(client_of, big):
    Endpoint.objects.filter(pk=big.pk).update(price_input=0.15, price_output=0.6, rpm=500, input_tpm=200_000)
    call_under_way(big)
    Endpoint.objects.create(name="free", base_url="https://b.example/v1", model="m")
    page = text_of(body(client_of("viewer").get("/endpoints/")))
    assert "$0.15 $0.60 500 requests 200,000 input tokens a minute" in page
    assert "big 1 under way" in page
    assert "free idle" in page
    assert "no price is set as it tells" in page


@pytest.mark.parametrize(
    ("dollars", "words"), [(0, "$0"), (2.5, "$2.50"), (3, "$3.00"), (0.075, "$0.075"), (1e-7, "$0.0000001"), (1250, "$1,250.00")]
)
def test_a_price_has_all_its_digits_and_whole_cents(dollars, words):
    assert price(dollars) == words


@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_endpoint_that_runs_are_using_is_not_idle(client_of, person, state):
    offline = Endpoint.objects.create(name="offline", base_url="https://a.example/v1", model="m")
    for name in ("first", "second"):
        run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name=name)
        make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, state=state)
    make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name="stopped")
    Endpoint.objects.create(name="unused", base_url="https://a.example/v1", model="m")
    page = text_of(body(client_of("viewer").get("/endpoints/")))
    assert "offline in use by 2 runs" in page
    assert "unused idle" in page
    assert "in use by 2 runs" in text_of(body(client_of("viewer").get(f"/endpoints/{offline.pk}/")))


def test_more_endpoints_take_no_more_queries(client_of, db):
    Endpoint.objects.create(name="first", base_url="https://a.example/v1", model="m")

    def add() -> None:
        for i in range(5):
            call_under_way(Endpoint.objects.create(name=f"e{i}", base_url=f"https://{i}.example/v1", model="m"), key=str(i))

    assert asks_the_same_of(client_of("viewer"), "/endpoints/", after=add) <= 9


# The page of one


def call_under_way(endpoint, *, key="a", batch=None, **state):
    pace, _ = Pace.objects.get_or_create(
        base_url=endpoint.base_url, model=endpoint.model, key_env=endpoint.key_env, defaults={"state": state}
    )
    line = LedgerLine.objects.get_or_create(run=None, role="teacher", endpoint=endpoint.name)[0]
    if batch:
        batch = Batch.objects.create(id=batch, pace=pace, line=line, calls=50, done=20, state="in_progress", remote_id="batch_abc")
    PendingCall.objects.create(key=(key * 64)[:64], pace=pace, line=line, batch=batch, most_nanodollars=5, expires_at=timezone.now())
    return line


def test_it_shows_every_setting_and_calls_on_their_way(client_of, big):
    Endpoint.objects.update(price_output=2.5)
    call_under_way(big)
    call_under_way(big, key="b", batch="b1")
    page = text_of(body(client_of("viewer").get(f"/endpoints/{big.pk}/")))
    for words in (
        "Price of input $0 per million tokens",
        "Price of output $2.50 per million tokens",
        "Send the sample number as seed no",
        "Requests a minute as it tells",
        "Timeout 120 s",
        "Structured output text",
    ):
        assert words in page
    assert "Under way now 1 of 16 at once" in page
    assert "In batches now 1" in page
    assert "batch_abc in progress 20 50 teacher" in page


def test_it_says_why_calls_wait_with_what_the_server_said_escaped(client_of, big):
    stop = timezone.now().timestamp()
    error = "HTTP 503 <script>alert(1)</script>"
    Pace.objects.create(
        base_url=big.base_url, model=big.model, key_env=big.key_env, state={"health": {"unwell_since": stop, "error": error}}
    )
    for url in ("/endpoints/", f"/endpoints/{big.pk}/"):
        page = body(client_of("viewer").get(url))
        assert "calls wait" in text_of(page)
        assert "<script>alert" not in page
    assert "more than half of its last calls failed" in text_of(page)


def test_what_it_cost_is_summed_by_role_and_by_run_and_leads_to_the_ledgers(client_of, person, big):
    cheap, dear = (make.make_run(person("member"), name=name) for name in ("cheap", "dear"))
    make.make_line(cheap, endpoint="big", calls=2, nanodollars=1_000_000_000)
    make.make_line(dear, endpoint="big", calls=3, nanodollars=2_000_000_000, unanswered=1, unanswered_nanodollars=500_000_000)
    make.make_line(dear, endpoint="big", role="referee", calls=10, nanodollars=4_000_000_000)
    make.make_line(dear, endpoint="another", calls=99, nanodollars=9_000_000_000)
    LedgerLine.objects.create(role="test", endpoint="big", calls=1, nanodollars=7_000_000)
    page = body(client_of("viewer").get(f"/endpoints/{big.pk}/"))
    text = text_of(page)
    assert "Spent $7.51 $0.50 of it for 1 unanswered, at the most" in text
    assert "Calls 17" in text
    assert "referee 10 0 0 $4.00 0 teacher 5 0 0 $3.00 $0.50 for 1 test 1 0 0 $0.0070 0" in text
    assert "dear 13 0 0 $6.00 $0.50 for 1 cheap 2 0 0 $1.00 0 no run: tests, and runs that are deleted 1 0 0 $0.0070 0" in text
    assert "Together 16 0 0 $7.007 $0.50 for 1 Counts in the budget 17 $7.507" in text
    assert "By 2 runs and by tests." in text
    assert (f"/runs/{dear.pk}/ledger", "dear") in links(page)


def test_a_key_that_is_not_set_leaves_the_ledger_empty_and_the_name_free(client_of, big, monkeypatch):
    monkeypatch.delenv("BIG_KEY", raising=False)
    client = client_of("admin")
    assert "so nothing was called" in text_of(body(client.post(f"/endpoints/{big.pk}/test")))
    page = text_of(body(client.get(f"/endpoints/{big.pk}/")))
    assert "It was not called yet." in page
    client.post(f"/endpoints/{big.pk}/edit", {**GOOD, "name": "renamed"})
    big.refresh_from_db()
    assert big.name == "renamed"


def test_an_admin_sets_its_budget_there_and_others_see_it(client_of, big):
    LedgerLine.objects.create(role="teacher", endpoint="big", calls=5, nanodollars=1_000_000_000)
    admin = client_of("admin")
    assert f'action="/endpoints/{big.pk}/budget"' in body(admin.get(f"/endpoints/{big.pk}/"))
    admin.post(f"/endpoints/{big.pk}/budget", {"most_calls": "20", "most_dollars": "4"})
    page = body(client_of("viewer").get(f"/endpoints/{big.pk}/"))
    assert "$1.00 of $4.00 spent" in text_of(page)
    assert "5 of 20 calls" in text_of(page)
    assert "<form" not in page[page.index('id="budget-title"') :].partition("</section>")[0]


def test_more_runs_and_batches_take_no_more_queries(client_of, person, big):
    call_under_way(big, batch="b0")

    def add() -> None:
        for i in range(1, 6):
            make.make_line(make.make_run(person("member"), name=f"run {i}"), endpoint="big", calls=i)
            call_under_way(big, key=str(i), batch=f"b{i}")

    assert asks_the_same_of(client_of("viewer"), f"/endpoints/{big.pk}/", after=add) <= 18


# Archiving


def test_an_archived_one_is_folded_away_and_comes_back(client_of, big):
    Endpoint.objects.create(name="other", base_url="https://b.example/v1", model="m")
    client = client_of("admin")
    page = client.post(f"/endpoints/{big.pk}/archive", follow=True)
    assert "Archived big: new runs are not offered it. Runs that use it go on." in text_of(body(page))
    listed = body(client.get("/endpoints/"))
    assert (f"/endpoints/{big.pk}/", "big") not in links(listed)
    assert ("/endpoints/?archived=yes", "1 archived endpoint") in links(listed)
    archived = body(client.get("/endpoints/?archived=yes"))
    assert [text for address, text in links(archived) if address.startswith("/endpoints/") and text in ("big", "other")] == ["big"]
    assert "Restored big" in text_of(body(client.post(f"/endpoints/{big.pk}/restore", follow=True)))
    assert (f"/endpoints/{big.pk}/", "big") in links(body(client.get("/endpoints/")))


def test_an_archived_one_is_not_offered_to_new_runs_and_is_refused_where_it_is_sent_all_the_same(client_of, big):
    client = client_of("member")
    assert 'value="big"' in body(client.get("/runs/new?preset=demo"))
    Endpoint.objects.update(archived_at=timezone.now())
    page = client.get("/runs/new?preset=demo")
    assert 'value="big"' not in body(page)
    sent = {field.html_name: field.value() for field in page.context["form"] if field.value() not in (None, False)}
    refused = client.post("/runs/new?preset=demo", {**sent, "new_experiment": "archived", "endpoint": "big"})
    assert refused.status_code == 422
    assert "endpoint" in refused.context["form"].errors


def test_archiving_twice_keeps_the_first_time_and_says_nothing(client_of, big):
    client = client_of("admin")
    client.post(f"/endpoints/{big.pk}/archive", follow=True)
    first = Endpoint.objects.get().archived_at
    assert "Archived big:" not in text_of(body(client.post(f"/endpoints/{big.pk}/archive", follow=True)))
    assert Endpoint.objects.get().archived_at == first is not None


@pytest.mark.parametrize("role", ["viewer", "member"])
def test_nobody_less_than_an_admin_archives_and_a_link_does_not(client_of, big, role):
    for action in ("archive", "restore"):
        assert client_of(role).post(f"/endpoints/{big.pk}/{action}").status_code == 403
        assert client_of("admin").get(f"/endpoints/{big.pk}/{action}").headers["Location"] == f"/endpoints/{big.pk}/"
        assert f"/endpoints/{big.pk}/{action}" not in body(client_of(role).get(f"/endpoints/{big.pk}/"))
    assert Endpoint.objects.get().archived_at is None


# The test


def test_a_member_tests_it_and_sees_what_came_of_it(client_of, server, local):
    page = text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test", headers={"HX-Request": "true"})))
    assert "It works. It answered \N{LEFT DOUBLE QUOTATION MARK}yes" in page
    assert "Model, as it says big-0301 Token counts told Limits not told" in page
    assert "Answered in 0.0" in page
    assert "Spent $0.000014 Calls 1" in page
    assert "Unanswered, at most By role test 1 10 2 $0.000014 0" in page
    assert len(server.asked) == 1


@pytest.mark.django_db(transaction=True)
def test_in_a_browser_the_result_and_the_sums_change_without_leaving_the_page(page_of, server):
    local = Endpoint.objects.create(name="local", base_url=server.url, model="m", price_input=1, price_output=2)
    Budget.objects.create(endpoint=local, most_nanodollars=4_000_000_000)
    page = page_of("member")
    page.goto(f"/endpoints/{local.pk}/")
    server.go.clear()
    page.click("#test button")
    page.wait_for_selector("text=Asking it for one word", state="visible")
    assert page.is_disabled("#test button")
    server.go.set()
    page.wait_for_selector("#tried >> text=It works.")
    assert "$0.000014" in page.inner_text("#so-far")
    assert "$0.000014" in page.inner_text("#costs tfoot >> nth=0")
    assert "$0.000014 of $4.00 spent" in page.inner_text("#meters")
    assert page.is_enabled("#test button")


def test_without_a_script_the_whole_page_comes_back(client_of, local):
    page = body(client_of("member").post(f"/endpoints/{local.pk}/test"))
    assert "It works." in text_of(page)
    assert "What it cost" in page


def test_a_test_is_a_line_of_the_ledger_without_a_run(client_of, local):
    for _ in range(2):
        client_of("member").post(f"/endpoints/{local.pk}/test")
    line = LedgerLine.objects.get()
    assert (line.run, line.role, line.endpoint, line.calls, line.prompt_tokens, line.completion_tokens) == (None, "test", "local", 2, 20, 4)
    assert line.nanodollars == 2 * (10 * 1000 + 2 * 2000)


@pytest.mark.parametrize(("answer", "column"), [(refused(429), "limited"), (refused(503), "failed"), (refused(401), None)])
def test_a_test_without_an_answer_costs_nothing_and_counts_as_what_it_was(client_of, server, local, answer, column):
    server.answer = lambda asked: answer
    page = text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test")))
    assert "It does not work. Endpoint 'local'" in page
    line = LedgerLine.objects.get()
    assert (line.calls, line.nanodollars, line.limited, line.failed) == (0, 0, int(column == "limited"), int(column == "failed"))


def test_a_silent_server_counts_at_the_most_it_can_have_cost(client_of, server, local):
    Endpoint.objects.update(timeout_s=1)
    server.go.clear()
    page = text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test")))
    assert "did not answer within 1 s" in page
    assert "it may have been charged" in page
    line = LedgerLine.objects.get()
    assert line.unanswered == 1
    assert line.unanswered_nanodollars > 0


def test_limits_that_the_server_tells_are_shown(client_of, server, local):
    headers = {"Content-Type": "application/json", "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}
    server.answer = lambda asked: Answer(body=said("yes").body, headers=headers)
    assert "Requests 60 a minute, 59 more right away" in text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test")))


def test_a_limit_of_a_day_is_not_called_one_of_a_minute(client_of, server, local):
    told = {"x-ratelimit-limit-requests": "10000", "x-ratelimit-remaining-requests": "20", "x-ratelimit-reset-requests": "3h0m0s"}
    server.answer = lambda asked: Answer(body=said("yes").body, headers={"Content-Type": "application/json", **told})
    page = text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test")))
    assert "Requests 10,000 in a longer time than a minute, 20 of them left; whole again in 3 h" in page


def test_what_a_server_says_is_escaped(client_of, server, local):
    evil = "<img src=x onerror=alert(1)>"
    server.answer = lambda asked: said(evil, model=evil)
    assert evil not in body(client_of("member").post(f"/endpoints/{local.pk}/test"))
    server.answer = lambda asked: refused(400, evil)
    page = body(client_of("member").post(f"/endpoints/{local.pk}/test"))
    assert evil not in page
    assert evil in text_of(page)


def test_a_private_address_is_not_called_by_a_test_either(client_of, server, local, settings):
    settings.LIONWEB_PRIVATE_HOSTS = []
    page = text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test")))
    assert "is not called: 127.0.0.1 is a private address" in page
    assert server.asked == []


def test_a_spent_budget_holds_a_test_back(client_of, server, local):
    LedgerLine.objects.create(role="teacher", endpoint="local", calls=5)
    Budget.objects.create(endpoint=local, most_calls=5)
    page = text_of(body(client_of("member").post(f"/endpoints/{local.pk}/test")))
    assert "Nothing was called. The budget of endpoint local is spent: 5 of 5 calls are made." in page
    assert server.asked == []


# Who may what


def test_a_viewer_does_not_test_and_sees_no_button(client_of, server, local):
    client = client_of("viewer")
    assert client.post(f"/endpoints/{local.pk}/test").status_code == 403
    assert f"/endpoints/{local.pk}/test" not in body(client.get(f"/endpoints/{local.pk}/"))
    assert server.asked == []


def test_looking_at_the_test_calls_nothing(client_of, server, local):
    assert client_of("admin").get(f"/endpoints/{local.pk}/test").headers["Location"] == f"/endpoints/{local.pk}/"
    assert server.asked == []


@pytest.mark.parametrize("role", ["viewer", "member"])
def test_nobody_less_than_an_admin_sets_them(client_of, role, big):
    client = client_of(role)
    for url in ("/endpoints/new", f"/endpoints/{big.pk}/edit"):
        assert client.get(url).status_code == 403
        assert client.post(url, GOOD).status_code == 403
    assert "/endpoints/new" not in body(client.get("/endpoints/"))
    assert f"/endpoints/{big.pk}/edit" not in body(client.get(f"/endpoints/{big.pk}/"))


def test_one_that_is_not_there_is_said_so_in_words(client_of, db):
    for url in ("/endpoints/99/", "/endpoints/99/edit", "/endpoints/99/budget"):
        response = client_of("admin").get(url)
        assert response.status_code == 404
        assert "There is no such endpoint." in text_of(body(response))


def test_a_stranger_sees_none(client, big):
    for url in ("/endpoints/", f"/endpoints/{big.pk}/"):
        assert client.get(url).status_code == 302
    for url in ("/endpoints/new", f"/endpoints/{big.pk}/test"):
        assert client.post(url, GOOD).status_code == 302
    assert Endpoint.objects.count() == 1
    assert not LedgerLine.objects.exists()
