"""Home: what runs now, what waits for somebody, the experiments."""

from tests import make
from tests.web.pages import asks_the_same_of, body, links, text_of, total
from trainer.plan import Stage, Step


def test_a_member_is_offered_the_demo_and_a_viewer_is_not(client_of):
    assert "Launch the demo" in body(client_of("member").get("/"))
    assert "Launch the demo" not in body(client_of("viewer").get("/"))


def test_a_stranger_is_sent_to_sign_in(client, db):
    for url in ("/", "/live"):
        assert client.get(url).headers["Location"].startswith("/sign-in/")


def test_a_running_job_is_shown_with_its_progress_rate_and_time_left(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name="quick-kudu-3")
    job = make.make_job(
        run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=1500, items_done=412, items_before=12
    )
    page = text_of(body(client_of("viewer").get("/live")))
    assert "quick-kudu-3" in page
    assert "Iteration 1 of 2 · discrimination · judgements" in page
    assert "412 of 1,500 judged" in page
    assert "4.0 / s" in page  # 400 in 100 s: what earlier jobs did counts for nothing
    assert "4 min 32 s left" in page
    assert job.state == "running"


def test_a_running_tuning_is_as_far_as_its_last_logged_step(client_of, person):
    run = make.make_run_until(person("member"), 0, Step.TUNING)
    iteration = run.iterations.get(number=0)
    job = make.make_job(iteration, Stage.IMITATION, Step.TUNING)
    iteration.metrics.create(job=job, step=100, steps=400, loss=1.5, learning_rate=1e-3)
    page = text_of(body(client_of("viewer").get("/live")))
    assert "100 of 400 steps" in page
    assert "5 min left" in page


def test_a_failed_job_waits_for_somebody_until_it_is_tried_again(client_of, person):
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES)
    iteration = run.iterations.get(number=1)
    make.make_job(iteration, Stage.GENERATION, Step.CANDIDATES, state="failed", reason="The endpoint did not answer.")
    client = client_of("viewer")
    assert "The endpoint did not answer." in body(client.get("/"))
    make.make_job(iteration, Stage.GENERATION, Step.CANDIDATES, state="queued", worker="")
    assert "The endpoint did not answer." not in body(client.get("/"))


def test_quarantined_counts_open_as_many_instructions(client_of, person):
    make.make_finished_run(person("member"), seeds=40)
    client = client_of("viewer")
    opened = [(url, text) for url, text in links(body(client.get("/"))) if "verdict=quarantined" in url]
    assert len(opened) == 2
    for url, text in opened:
        assert total(body(client.get(url))) == int(text)


def test_more_runs_and_experiments_take_no_more_queries(client_of, person):
    owner = person("member")

    def add(first: int) -> None:
        for i in range(first, first + 3):
            experiment = make.make_experiment(owner, f"experiment {i}")
            run = make.make_run_until(owner, 1, Step.JUDGEMENTS, name=f"run-{i}", experiment=experiment)
            make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS)
            make.make_finished_run(owner, name=f"done-{i}", experiment=experiment)

    add(0)
    assert asks_the_same_of(client_of("viewer"), "/", after=lambda: add(3)) <= 9


def test_hostile_names_are_shown_letter_for_letter(client_of, person):
    make.make_experiment(person("member"), "<script>alert(1)</script>")
    page = body(client_of("viewer").get("/"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
