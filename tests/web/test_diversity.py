"""The diversity page: measures beside the seeds, an alarm where they collapse, and counts that open their rows."""

import json
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from experiments import diversity_charts, querysets_diversity
from experiments.diversity_board import read_diversity
from experiments.models import Diversity, Instruction, Traits
from tests import make
from trainer.diversity import Diversity as Measured
from trainer.diversity import Spread
from trainer.plan import Step

pytestmark = pytest.mark.django_db


@pytest.fixture
def run(person):
    return make.make_finished_run(person("member"))


def listed(client, url):
    """How many instructions the list at an address says it holds."""
    found = re.search(r'data-total="(\d+)"', client.get(url.replace("&amp;", "&")).content.decode())
    assert found is not None, url
    return int(found[1])


def test_every_count_opens_just_the_rows_it_counts(client_of, run):
    client = client_of("viewer")
    page = client.get(f"/runs/{run.pk}/diversity").content.decode()
    links = re.findall(r'<a href="(/runs/\d+/instructions\?[^"]+)">([\d,]+)</a>', page)
    assert len(links) > 12
    for url, n in links:
        assert listed(client, url) == int(n.replace(",", "")), url


def test_every_sector_of_what_is_asked_for_opens_just_the_rows_it_counts(client_of, run):
    Traits.objects.filter(instruction__position__in=[1, 2, 3]).update(verb="write", noun="story")
    Traits.objects.filter(instruction__position=4).update(verb="write", noun="")
    client = client_of("viewer")
    page = client.get(f"/runs/{run.pk}/diversity?iteration=1").content.decode()
    figures = [json.loads(data) for data in re.findall(r'<script id="[\w-]+-data" type="application/json">(.*?)</script>', page)]
    sunbursts = [trace for figure in figures for trace in figure["data"] if trace["type"] == "sunburst"]
    assert len(sunbursts) == 3
    sectors = [pair for trace in sunbursts for pair in zip(trace["customdata"], trace["values"], trace["labels"], strict=True)]
    assert {"write", "story", "no object"} <= {label for _, _, label in sectors}
    for url, n, label in sectors:
        if label != diversity_charts.OTHER:
            assert listed(client, url) == n, url


def test_objects_of_a_verb_add_up_to_it(run):
    counts = querysets_diversity.root_words(run, 1)["cache_pool"]
    figure = diversity_charts.sunburst(run, "x", "x", counts, {}).figure["data"][0]
    inner = {label: value for label, parent, value in zip(figure["labels"], figure["parents"], figure["values"], strict=True) if not parent}
    for verb, n in inner.items():
        assert n == sum(value for parent, value in zip(figure["parents"], figure["values"], strict=True) if parent == verb)
    assert counts.total() == Instruction.objects.filter(run=run, iteration__number=0).count()


def test_parents_without_children_are_those_nothing_was_made_from(run):
    for one in read_diversity(run)[1:]:
        for origin in one.childless:
            drawn = (
                Instruction.objects.filter(run=run, iteration__number=one.number, origin=origin.origin).values("parent").distinct().count()
            )
            assert origin.parents == origin.childless + drawn
            assert 0 <= origin.expected <= origin.parents


def test_with_parents_at_random_the_whole_cache_pool_can_be_drawn(person):
    run = make.make_finished_run(person("member"), config=make.make_config(iterations=1, parents="random"))
    [hard, easy] = read_diversity(run)[1].childless
    assert (hard.parents, easy.parents) == (12, 12)


def test_more_iterations_take_no_more_queries(client_of, person):
    def asked(iterations):
        run = make.make_finished_run(person("member"), name=f"run-{iterations}", config=make.make_config(iterations=iterations))
        with CaptureQueriesContext(connection) as queries:
            assert client.get(f"/runs/{run.pk}/diversity").status_code == 200
        return len(queries)

    client = client_of("viewer")
    asked(1)
    assert asked(4) == asked(2)


def test_a_collapse_stands_on_top_of_the_page(client_of, run):
    told = Measured(made=8, new=Spread(), seeds=Spread(), alarms=("They repeat their words: <b>0.10</b>.",))
    Diversity.objects.filter(iteration__run=run, iteration__number=1).update(values=told.as_dict())
    page = client_of("viewer").get(f"/runs/{run.pk}/diversity").content.decode()
    assert "Iteration 1: the new instructions are less varied than the seeds. They repeat their words: &lt;b&gt;0.10&lt;/b&gt;." in page


def test_a_run_that_made_nothing_yet_says_so(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    assert "Nothing new was made yet." in client_of("viewer").get(f"/runs/{run.pk}/diversity").content.decode()


def test_a_run_from_before_has_dashes_where_nothing_was_measured(client_of, run):
    Diversity.objects.filter(iteration__run=run).delete()
    Traits.objects.filter(instruction__run=run).delete()
    page = client_of("viewer").get(f"/runs/{run.pk}/diversity").content.decode()
    assert '<span class="soft">-</span>' in page
