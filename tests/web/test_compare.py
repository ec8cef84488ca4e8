"""Runs side by side: what differs, what they reached, and clear words where there is nothing to compare."""

import pytest

from tests import make
from tests.web.pages import asks_the_same_of, body, figure, links, text_of, total


@pytest.fixture
def runs(person):
    owner = person("member")
    base = make.make_finished_run(owner, name="golden-lion-1", seeds=40)
    other = make.make_finished_run(owner, name="swift-heron-2", seeds=40, draw=3, config=make.make_config(parents="uniform", tau=2.0))
    return base, other


def address(*runs) -> str:
    return "/compare?runs=" + ",".join(str(run.pk) for run in runs)


def test_the_settings_that_differ_are_shown_and_the_identical_on_demand(client_of, runs):
    client = client_of("viewer")
    page = body(client.get(address(*runs)))
    assert "loop.parents" in page
    assert "uniform" in page
    assert "loop.similarity" not in page
    assert "loop.similarity" in body(client.get(address(*runs) + "&all=1"))


def test_the_curves_and_the_table_say_what_the_rows_say(client_of, runs):
    response = client_of("viewer").get(address(*runs))
    chart = figure(body(response), "hard-share")
    assert chart["layout"]["yaxis"]["title"]["text"] == "Hard of hard and easy, %"
    shares = chart["data"]
    assert [trace["name"] for trace in shares] == ["golden-lion-1", "swift-heron-2"]
    for run, trace, row in zip(runs, shares, response.context["compared"], strict=True):
        verdicts = run.iterations.get(number=2).verdicts
        assert verdicts.filter(label="quarantined").exists()  # and left out: they are not easy
        share = verdicts.filter(label="hard").count() / verdicts.filter(label__in=["hard", "easy"]).count()
        assert trace["y"][-1] == pytest.approx(100 * share)
        assert row.hard_share == pytest.approx(share)
        first, last = (run.iterations.get(number=n).scores.get(task="").value for n in (0, 2))
        assert row.gain == pytest.approx(100 * (last - first))


def test_its_numbers_open_as_many_instructions(client_of, runs):
    client = client_of("viewer")
    opened = [(url, text) for url, text in links(body(client.get(address(*runs)))) if "/instructions?" in url]
    assert len(opened) == 6
    for url, text in opened:
        assert total(body(client.get(url))) == int(text)


def test_iterations_that_scored_nothing_have_no_hard_share(client_of, runs):
    base, other = runs
    none = {"teacher_score": None, "student_score": None, "discrepancy": None, "reason": "No answer."}
    base.iterations.get(number=2).verdicts.update(label="quarantined", **none)
    response = client_of("viewer").get(address(base, other))
    assert response.context["compared"][0].hard_share is None
    assert figure(body(response), "hard-share")["data"][0]["x"] == [1]


def test_the_order_of_the_address_decides_the_base(client_of, runs):
    base, other = runs
    assert client_of("viewer").get(address(other, base)).context["compared"][0].run == other


def test_checkboxes_send_the_same_page(client_of, runs):
    base, other = runs
    assert client_of("viewer").get(f"/compare?runs={base.pk}&runs={other.pk}").status_code == 200


@pytest.mark.parametrize("query", ["", "?runs=", "?runs=x,y", "?runs={}", "?runs={0},{0}"])
def test_fewer_than_two_runs_are_told_so(client_of, runs, query):
    response = client_of("viewer").get("/compare" + query.format(runs[0].pk))
    assert response.status_code == 422
    assert "Comparing takes at least two runs" in text_of(body(response))


def test_an_unknown_run_is_named(client_of, runs):
    response = client_of("viewer").get(f"/compare?runs={runs[0].pk},99999")
    assert response.status_code == 404
    assert "There is no run with the number 99999." in body(response)
    assert client_of("viewer").get("/compare?runs=" + "9" * 40).status_code == 422


def test_a_hostile_run_name_is_harmless_in_charts_too(client_of, person, runs):
    bad = make.make_finished_run(person("member"), name="</script><a href='javascript:alert(1)'>x</a>")
    page = body(client_of("viewer").get(address(runs[0], bad)))
    assert "</script><a" not in page
    assert "&lt;a href" in figure(page, "hard-share")["data"][1]["name"]  # Plotly would make a link of it


def test_more_runs_take_no_more_queries(client_of, person, runs):
    more = [make.make_finished_run(person("member"), name=f"more-{i}") for i in range(3)]
    client = client_of("viewer")
    two = asks_the_same_of(client, address(*runs), after=lambda: None)
    assert two == asks_the_same_of(client, address(*runs, *more), after=lambda: None) <= 9


def test_a_stranger_compares_nothing(client, runs):
    assert client.get(address(*runs)).status_code == 302
