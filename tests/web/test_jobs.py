"""The jobs of all runs."""

from tests import make
from tests.web.pages import asks_the_same_of, body, total
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


def test_more_jobs_take_no_more_queries(client_of, person):
    owner = person("member")
    make.make_finished_run(owner, name="one")

    def add() -> None:
        make.make_finished_run(owner, name="two")

    assert asks_the_same_of(client_of("viewer"), "/jobs/", after=add) <= 5


def test_a_stranger_sees_none(client, db):
    assert client.get("/jobs/").status_code == 302
