"""An experiment with its runs, and new experiments."""

import pytest

from experiments.models import Experiment
from tests import make
from tests.web.pages import asks_the_same_of, body, text_of
from trainer.plan import Stage, Step


def test_each_run_has_its_state_hard_share_and_last_score(client_of, person):
    owner = person("member")
    run = make.make_finished_run(owner, name="golden-lion-1")
    waiting = make.make_run(owner, name="eager-ibex-2")
    make.make_job(waiting.iterations.get(number=0), Stage.IMITATION, Step.TEACHER_RESPONSES, state="queued", worker="")
    page = body(client_of("viewer").get(f"/experiments/{run.experiment_id}/"))
    assert 'state-finished">finished' in page
    assert 'state-queued">queued' in page
    last = run.iterations.get(number=2).scores.get(task="")
    assert f"{100 * last.value:.1f} %" in page
    assert f"/runs/{run.pk}/scores/demo_skills/2/" in page
    assert "Hard share by iteration: " in page


def test_the_quarantined_do_not_make_a_pool_look_easy(client_of, person):
    run = make.make_finished_run(person("member"), seeds=40)
    verdicts = run.iterations.get(number=2).verdicts
    scored = verdicts.exclude(label="quarantined")
    assert scored.count() < verdicts.count()
    row = client_of("viewer").get(f"/experiments/{run.experiment_id}/").context["rows"][0]
    assert row.last_hard_share == pytest.approx(scored.filter(label="hard").count() / scored.count())
    assert len(row.hard_shares) == 2


def test_an_unknown_experiment_is_not_found(client_of):
    assert client_of("viewer").get("/experiments/999/").status_code == 404


def test_more_runs_take_no_more_queries(client_of, person):
    owner = person("member")
    run = make.make_finished_run(owner, name="run-0")

    def add() -> None:
        for i in range(1, 5):
            make.make_finished_run(owner, name=f"run-{i}")

    assert asks_the_same_of(client_of("viewer"), f"/experiments/{run.experiment_id}/", after=add) <= 10


def test_a_member_makes_an_experiment(client_of):
    response = client_of("member").post("/experiments/new", {"name": "Long tails", "description": "Do they help?"})
    made = Experiment.objects.get(name="Long tails")
    assert response.headers["Location"] == f"/experiments/{made.pk}/"
    assert made.owner.get_username() == "member"


def test_a_name_that_is_taken_is_refused_beside_its_field_and_kept(client_of, person):
    make.make_experiment(person("member"), "Long tails")
    response = client_of("member").post("/experiments/new", {"name": "Long tails", "description": "again"})
    assert response.status_code == 422
    assert "already exists" in text_of(body(response))
    assert "again" in body(response)


def test_a_viewer_and_a_stranger_make_none(client_of, client):
    assert client_of("viewer").post("/experiments/new", {"name": "x"}).status_code == 403
    assert client.post("/experiments/new", {"name": "x"}).status_code == 302
    assert not Experiment.objects.exists()
