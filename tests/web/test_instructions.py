"""The lists of a run's instructions and candidates: filters in the URL, search, order, pages."""

import re
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
        ("iteration=1&d_from=0.5", {"verdicts__iteration__number": 1, "verdicts__discrepancy__gte": 0.5}),
        ("d_to=0", {"verdicts__iteration__number": 2, "verdicts__discrepancy__lt": 0}),
        ("iteration=1&d_from=-1&d_to=3&verdict=hard", {"verdicts__iteration__number": 1, "verdicts__discrepancy__range": (1, 2.999)}),
        ("iteration=1&student_from=8&student_to=9", {"verdicts__iteration__number": 1, "verdicts__student_score__range": (8, 8.999)}),
        ("iteration=1&teacher_from=9.5", {"verdicts__iteration__number": 1, "verdicts__teacher_score__gte": 9.5}),
        ("iteration=1&gap_to=1", {"verdicts__iteration__number": 1, "verdicts__discrepancy__range": (-0.999, 0.999)}),
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


def test_a_range_includes_its_lower_end_and_not_its_upper(client_of, run, url):
    rows = Verdict.objects.filter(iteration__run=run, iteration__number=1, discrepancy__isnull=False).order_by("pk")
    for verdict, d in zip(rows[:5], (-2.0, -1.0, 0.0, 1.0, 2.0), strict=True):
        Verdict.objects.filter(pk=verdict.pk).update(discrepancy=d)
    rest = [v.discrepancy for v in rows[5:]]
    client = client_of("viewer")
    for query, inside in {
        "d_from=1&d_to=2": lambda d: 1 <= d < 2,
        "d_from=-2&d_to=-1": lambda d: -2 <= d < -1,
        "gap_from=1&gap_to=2": lambda d: 1 <= abs(d) < 2,
        "gap_from=0&gap_to=1": lambda d: 0 <= abs(d) < 1,
    }.items():
        wanted = sum(map(inside, [-2.0, -1.0, 0.0, 1.0, 2.0, *rest]))
        for more in ("", "&sort=-d", "&state=scored"):  # counted in the verdicts' table, or in the rows
            assert total(body(client.get(f"{url}?iteration=1&{query}{more}"))) == wanted, query + more


def test_ranges_stay_when_another_filter_changes_and_can_be_taken_away(client_of, url):
    client = client_of("viewer")
    page = body(client.get(f"{url}?iteration=1&gap_from=0.5&gap_to=2&d_from=-1&kind=copy&page=1"))
    for name, value in {"gap_from": "0.5", "gap_to": "2.0", "d_from": "-1.0"}.items():
        assert re.search(rf'name="{name}" value="{value.removesuffix(".0")}(\.0)?"', page), name
    away = {text: address for address, text in links(page)}["|d| from 0.5 below 2 \N{MULTIPLICATION X}"]
    assert away == "?iteration=1&d_from=-1&kind=copy"
    assert "gap_from" not in body(client.get(url + away)).split('id="list"')[1]


@pytest.mark.parametrize("query", ["d_from=x", "d_to=nan", "gap_from=inf", "teacher_from=99", "reason=no+md5", "gap_to=1e400"])
def test_a_range_that_makes_no_sense_is_told_and_left_out(client_of, url, query):
    client = client_of("viewer")
    page = body(client.get(f"{url}?{query}"))
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
