"""The jobs of all runs."""

import re

from tests import make
from tests.web.pages import asks_the_same_of, body, text_of, total
from trainer.plan import Stage, Step


def test_jobs_are_filtered_by_state_and_queue(client_of, person):
    run = make.make_finished_run(person("member"))
    make.make_job(run.iterations.get(number=2), Stage.GENERATION, Step.CANDIDATES, state="failed", reason="<b>no</b>")
    client = client_of("viewer")
    everything = total(body(client.get("/jobs/")))
    assert total(body(client.get("/jobs/?state=failed"))) == 1
    assert total(body(client.get("/jobs/?queue=gpu"))) + total(body(client.get("/jobs/?queue=teacher"))) == everything
    assert total(body(client.get("/jobs/?state=lovely"))) == everything
    assert "&lt;b&gt;no" in body(client.get("/jobs/"))


def test_the_state_comes_before_what_may_be_out_of_sight_and_the_reason_has_a_row_of_its_own(client_of, person):
    run = make.make_finished_run(person("member"))
    make.make_job(run.iterations.get(number=2), Stage.GENERATION, Step.CANDIDATES, state="failed", reason="No key.", note="3 tries.")
    page = body(client_of("viewer").get("/jobs/?state=failed"))
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page)
    assert heads[:3] == ["Job", "State", "Run"]
    [why] = re.findall(r'<tr class="why">.*?</tr>', page)
    assert text_of(why) == "No key. 3 tries."
    assert '<tr class="why">' not in body(client_of("viewer").get("/jobs/?state=finished"))


def test_more_jobs_take_no_more_queries(client_of, person):
    owner = person("member")
    make.make_finished_run(owner, name="one")

    def add() -> None:
        make.make_finished_run(owner, name="two")

    assert asks_the_same_of(client_of("viewer"), "/jobs/", after=add) <= 5


def test_a_stranger_sees_none(client, db):
    assert client.get("/jobs/").status_code == 302
