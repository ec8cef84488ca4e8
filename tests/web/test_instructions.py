"""The lists of a run's instructions and candidates: filters in the URL, search, order, pages."""

from html import escape

import pytest

from experiments.models import Candidate, Instruction, Verdict
from tests import make
from tests.web.pages import body, links, queries, total


@pytest.fixture
def run(person):
    return make.make_finished_run(person("member"), seeds=60)


@pytest.fixture
def url(run):
    return f"/runs/{run.pk}/instructions"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("iteration=1", {"verdicts__iteration__number": 1}),
        ("iteration=2&verdict=hard", {"verdicts__iteration__number": 2, "verdicts__label": "hard"}),
        ("iteration=1&verdict=quarantined", {"verdicts__iteration__number": 1, "verdicts__label": "quarantined"}),
        ("verdict=easy", {"verdicts__iteration__number": 2, "verdicts__label": "easy"}),  # of the last judged iteration
        ("iteration=2&inconsistent=on", {"verdicts__iteration__number": 2, "verdicts__inconsistent": True}),
        ("made=1", {"iteration__number": 1}),
        ("made_to=1", {"iteration__number__lte": 1}),
        ("origin=seed", {"origin": "seed"}),
        ("made=2&origin=hard", {"iteration__number": 2, "origin": "hard"}),
        ("kind=copy", {"kind": "copy"}),
        ("q=item00007", {"text__contains": "item00007"}),
    ],
)
def test_a_filter_leaves_just_the_rows_it_names(client_of, run, url, query, expected):
    wanted = Instruction.objects.filter(run=run, **expected).count()
    assert wanted
    assert total(body(client_of("viewer").get(f"{url}?{query}"))) == wanted


def test_the_verdict_shown_is_that_of_the_chosen_iteration(client_of, run, url):
    for number in (1, 2):
        rows = client_of("viewer").get(f"{url}?iteration={number}").context["page"].object_list
        shown = {row.pk: (row.label, row.discrepancy) for row in rows}
        verdicts = Verdict.objects.filter(iteration__run=run, iteration__number=number, instruction__in=shown)
        assert shown == {v.instruction_id: (v.label, v.discrepancy) for v in verdicts}


def test_search_takes_phrases_and_exclusions(client_of, run, url):
    first = run.instructions.first()
    Instruction.objects.filter(pk=first.pk).update(text="Name three large rivers of Africa")
    client = client_of("viewer")
    assert total(body(client.get(url, {"q": '"large rivers"'}))) == 1
    assert total(body(client.get(url, {"q": '"rivers large"'}))) == 0
    assert total(body(client.get(url, {"q": "rivers -africa"}))) == 0
    assert client.get(url, {"q": "'); DROP TABLE x; --"}).status_code == 200
    assert client.get(url, {"q": "\0"}).status_code == 400


def test_sorting_by_discrepancy_puts_what_has_none_last(client_of, url):
    for sort, ascending in (("-d", False), ("d", True)):
        pages = [client_of("viewer").get(f"{url}?iteration=1&sort={sort}&page={n}").context["page"] for n in (1, 2)]
        values = [row.discrepancy for page in pages for row in page.object_list]
        assert len(values) == 60
        numbers = [value for value in values if value is not None]
        assert values[: len(numbers)] == sorted(numbers, reverse=not ascending)


def test_pages_hold_fifty_and_keep_the_filters(client_of, url):
    page = body(client_of("viewer").get(f"{url}?origin=seed"))
    assert total(page) == 60
    assert page.count("/instructions/") - page.count("/instructions/?") >= 50
    following = next(address for address, text in links(page) if text == "Next")
    assert "origin=seed" in following
    assert "page=2" in following


def test_a_filter_that_makes_no_sense_is_told_and_left_out(client_of, url):
    client = client_of("viewer")
    page = body(client.get(f"{url}?verdict=lovely&iteration=99&page=xyz"))
    assert "It was left out." in page
    assert total(page) == total(body(client.get(url)))


def test_htmx_gets_the_list_alone_and_caches_keep_the_two_apart(client_of, url):
    response = client_of("viewer").get(url, headers={"HX-Request": "true"})
    assert "<html" not in body(response)
    assert 'id="list"' in body(response)
    assert "HX-Request" in response.headers["Vary"]


def test_more_rows_take_no_more_queries(client_of, person, run, url):
    more = make.make_finished_run(person("member"), name="more", config=make.make_config(iterations=3, new=40), seeds=120)
    client = client_of("viewer")
    for suffix, most in (("instructions", 10), ("candidates", 7)):
        amounts = {queries(client, f"/runs/{r.pk}/{suffix}") for r in (run, more)}
        assert len(amounts) == 1
        assert amounts.pop() <= most


def test_hostile_text_is_shown_letter_for_letter(client_of, run, url):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    Instruction.objects.filter(pk=run.instructions.first().pk).update(text=hostile, input=hostile)
    page = body(client_of("viewer").get(url))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert escape(hostile) in page


def test_a_run_without_verdicts_has_a_list(client_of, person):
    bare = make.make_run(person("member"), name="bare")
    page = body(client_of("viewer").get(f"/runs/{bare.pk}/instructions"))
    assert total(page) == 12
    assert "none is judged yet" in page


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("iteration=1&fate=accepted", {"iteration__number": 1, "fate": "accepted"}),
        ("fate=too_similar", {"fate": "too_similar"}),
        ("origin=easy", {"origin": "easy"}),
    ],
)
def test_candidates_are_filtered_by_iteration_fate_and_origin(client_of, run, query, expected):
    wanted = Candidate.objects.filter(iteration__run=run, **expected).count()
    assert wanted
    assert total(body(client_of("viewer").get(f"/runs/{run.pk}/candidates?{query}"))) == wanted


def test_a_rejected_candidate_shows_its_nearest_and_how_near_it_is(client_of, run):
    rejected = Candidate.objects.filter(iteration__run=run, fate="too_similar").first()
    page = body(client_of("viewer").get(f"/runs/{run.pk}/candidates?fate=rejected"))
    assert f"/instructions/{rejected.nearest_id}/" in page
    assert "0.920" in page
    assert total(page) == Candidate.objects.filter(iteration__run=run).exclude(fate="accepted").count()
