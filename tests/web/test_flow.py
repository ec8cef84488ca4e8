"""The pool flow: counts that add up exactly, at any moment of a run, and open the rows they count."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from experiments.flow import problems, read_flow
from experiments.models import Instruction
from experiments.trajectories import KINDS, read_trajectories
from tests import make
from trainer.plan import Step

pytestmark = pytest.mark.django_db

MOMENTS = [(1, Step.STUDENT_RESPONSES), (1, Step.JUDGEMENTS), (1, Step.CANDIDATES), (2, Step.JUDGEMENTS), (2, Step.TUNING)]


@pytest.mark.parametrize(("iteration", "step"), MOMENTS)
def test_the_sums_hold_at_every_moment(person, iteration, step):
    flow = read_flow(make.make_run_until(person("member"), iteration, step))
    assert problems(flow) == []
    for one in flow.iterations:
        assert one.cache_pool == one.answered + one.no_response + one.not_asked
        assert one.judged == one.count(label="hard") + one.count(label="easy") + one.count(label="quarantined")
        assert one.attempts == one.accepted + one.rejected
        assert one.next_cache_pool == one.cache_pool + one.accepted


def test_an_iteration_takes_up_the_cache_pool_that_the_one_before_left(person):
    first, second = read_flow(make.make_finished_run(person("member"))).iterations
    assert (first.cache_pool, second.cache_pool) == (12, first.next_cache_pool)
    assert first.train_pool == first.accepted == 8


def test_every_count_opens_just_the_rows_it_counts(client_of, person):
    run = make.make_finished_run(person("member"))
    client = client_of("viewer")
    page = client.get(f"/runs/{run.pk}/flow").content.decode()
    links = re.findall(r'<td class="num"><a href="([^"]+)">([\d,]+)</a>', page)
    assert len(links) > 30
    for url, n in links:
        listed = client.get(url.replace("&amp;", "&")).content.decode()
        found = re.search(r'data-total="(\d+)"', listed)
        assert found is not None, url
        assert found[1] == n.replace(",", ""), url


def test_more_iterations_take_no_more_queries(client_of, person):
    def asked(iterations):
        run = make.make_finished_run(person("member"), name=f"run-{iterations}", config=make.make_config(iterations=iterations))
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert client.get(f"/runs/{run.pk}/flow").status_code == 200
        return len(queries)

    client = client_of("viewer")
    asked(1)
    assert asked(4) == asked(2)


def test_what_became_of_the_judged_adds_up_to_them(person):
    run = make.make_finished_run(person("member"), config=make.make_config(iterations=3))
    moved = read_trajectories(run)
    assert [one.number for one in moved] == [1, 2, 3]
    for one in moved:
        assert one.judged == Instruction.objects.filter(run=run, iteration__number__lt=one.number).count()
        assert sum(n for _, n, _ in one.cells) == one.judged
    assert moved[0].counts["newly_scored"] + moved[0].counts["quarantined"] == moved[0].judged
    assert set(moved[-1].counts) <= set(KINDS)


def test_a_run_without_an_iteration_says_so(client_of, person):
    run = make.make_run(person("member"))
    assert "The first iteration has not begun: 12 seeds" in client_of("viewer").get(f"/runs/{run.pk}/flow").content.decode()
