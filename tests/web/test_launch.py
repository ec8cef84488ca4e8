"""The launch form: every setting of the trainer, presets, clones, and bad values refused beside their fields."""

import re

import pytest

from experiments.config_table import specs
from experiments.forms import APART, MAIN, LaunchForm
from experiments.models import Budget, Endpoint, Experiment, Run, SeedPool
from tests import make
from tests.web.pages import body, text_of
from trainer.config import OFFLINE_URL, load_preset, preset_names


def filled(client, query: str = "preset=demo", **changes: object) -> dict[str, object]:
    """What a browser would send from the form as it was shown, with some fields changed."""
    form = client.get(f"/runs/new?{query}").context["form"]
    data = {field.html_name: field.value() for field in form if field.value() is not None and field.value() is not False}
    return {**data, **changes}


def field_of(page: str, name: str) -> str:
    """The part of the page that belongs to one field."""
    found = re.search(rf'class="field field-{re.escape(name)}["\s]', page)
    assert found, name
    start = found.start()
    end = page.find('class="field field-', start + 10)
    return page[start:end]


@pytest.mark.parametrize("preset", preset_names())
def test_every_setting_of_the_trainer_has_a_field_with_its_paper_value(client_of, preset):
    page = body(client_of("member").get(f"/runs/new?preset={preset}"))
    for name, spec in specs().items():
        if name in APART:
            continue
        field = text_of(field_of(page, name))
        assert spec.label in field
        assert not spec.metadata["paper"] or f"Paper: {spec.metadata['paper']}." in field


def test_the_main_settings_are_settings_of_the_trainer():
    assert set(MAIN) <= set(specs()) - APART


@pytest.mark.parametrize("preset", preset_names())
def test_what_a_preset_shows_is_what_it_launches(client_of, preset, db):
    make.make_pool("mine")
    pool = SeedPool.objects.get().pk
    data = filled(client_of("member"), f"preset={preset}", endpoint="offline", new_experiment="x", seed_pool=pool)
    form = LaunchForm(data, start=load_preset(preset))
    assert form.is_valid(), form.errors
    shown, wanted = form.config.as_dict(), load_preset(preset).as_dict()
    for section in ("loop", "student", "imitation", "respond", "evaluation", "seed"):
        assert shown[section] == wanted[section], section
    for role in ("teacher", "referee", "generator"):
        assert {**shown[role], "endpoint": ""} == {**wanted[role], "endpoint": ""}


def test_a_member_launches_the_demo_as_it_is(client_of):
    client = client_of("member")
    response = client.post("/runs/new?preset=demo", filled(client))
    run = Run.objects.get()
    assert response.headers["Location"] == f"/runs/{run.pk}/"
    assert run.experiment.name == "Demo"
    assert run.owner.get_username() == "member"
    assert run.instructions.count() == run.seed_pool.instructions.count() == 1500
    assert run.run_config().endpoints["offline"].base_url == OFFLINE_URL
    assert run.iterations.get().stages.get().jobs.get().state == "queued"


def test_a_second_demo_joins_the_experiment_of_the_first(client_of):
    client = client_of("member")
    client.post("/runs/new?preset=demo", filled(client))
    client.post("/runs/new?preset=demo", filled(client))
    assert Run.objects.filter(experiment__name="Demo").count() == 2
    assert SeedPool.objects.count() == 1


@pytest.mark.parametrize(
    ("name", "typed", "complaint"),
    [
        ("loop.tau", "10", "10 is too large: the most is 9."),
        ("loop.tau", "nan", "not a number"),
        ("loop.iterations", "three", "'three' is not a whole number."),
        ("loop.iterations", "", "'' is not a whole number."),
        ("loop.ratio", "7:1", "'7:1' is not one of: 1:0"),
        ("imitation.device_batch_size", "7", "64 is not a multiple of 7"),
        ("student.lora_rank", "0", "0 is too small: the least is 1."),
        ("seed", "-1", "too small"),
    ],
)
def test_a_bad_value_is_refused_beside_its_field_and_everything_typed_is_kept(client_of, name, typed, complaint):
    client = client_of("member")
    response = client.post("/runs/new?preset=demo", filled(client, run_name="my-run", **{name: typed}))
    page = body(response)
    assert response.status_code == 422
    assert complaint in text_of(field_of(page, name))
    assert 'aria-invalid="true"' in field_of(page, name)
    assert f'value="{typed}"' in field_of(page, name) or not typed or name == "loop.ratio"
    assert 'value="my-run"' in field_of(page, "run_name")
    assert not Run.objects.exists()


@pytest.mark.parametrize(("name", "typed"), [("evaluation.benchmarks", ["no-such"]), ("loop.tau", "10"), ("loop.ratio", "7:1")])
def test_the_list_of_errors_leads_to_each_field(client_of, name, typed):
    client = client_of("member")
    page = body(client.post("/runs/new?preset=demo", filled(client, **{name: typed})))
    target = f"id_{name}"
    assert f'<a href="#{target}">' in page
    assert len(re.findall(rf'\bid="{re.escape(target)}"', page)) == 1


def test_a_section_with_a_refused_value_is_open(client_of):
    client = client_of("member")
    page = body(client.post("/runs/new?preset=demo", filled(client, **{"student.lora_rank": "0"})))
    assert re.search(r'<details id="section-student"\s+open', page)
    assert not re.search(r'<details id="section-loop"\s+open', page)


def test_no_experiment_and_a_name_that_is_taken_are_refused(client_of, person):
    client = client_of("member")
    make.make_run(person("member"), name="taken")
    none = client.post("/runs/new?preset=demo", filled(client, experiment="", new_experiment="", run_name="taken"))
    assert "Choose an experiment, or name a new one." in text_of(field_of(body(none), "new_experiment"))
    assert "There is a run of this name." in text_of(field_of(body(none), "run_name"))
    twice = client.post("/runs/new?preset=demo", filled(client, experiment="", new_experiment="Long tails"))
    assert "There is an experiment of this name" in text_of(field_of(body(twice), "new_experiment"))


def test_an_empty_pool_is_refused_beside_its_field_and_no_run_is_left(client_of):
    client = client_of("member")
    pool = SeedPool.objects.create(name="hollow", source="tests")
    response = client.post("/runs/new?preset=demo", filled(client, seed_pool=str(pool.pk)))
    assert "This pool is empty." in text_of(field_of(body(response), "seed_pool"))
    assert not Run.objects.exists()
    assert not Experiment.objects.exists()


def test_each_role_may_have_its_own_endpoint(client_of, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    client = client_of("member")
    Endpoint.objects.create(name="big", base_url="https://api.example.com/v1", model="big-model", key_env="SOME_KEY")
    assert "big · big-model (SOME_KEY is not set here)" in body(client.get("/runs/new?preset=demo"))
    client.post("/runs/new?preset=demo", filled(client, referee_endpoint="big"))
    config = Run.objects.get().run_config()
    assert (config.teacher.endpoint, config.referee.endpoint, config.generator.endpoint) == ("offline", "big", "offline")
    assert config.endpoints["big"].model == "big-model"
    assert "SOME_KEY" in str(config.as_dict())


def test_a_clone_is_filled_with_the_config_of_its_run(client_of, person):
    source = make.make_run(person("member"), config=make.make_config(iterations=7, tau=2.5))
    form = client_of("member").get(f"/runs/new?from={source.pk}").context["form"]
    assert form["loop.iterations"].value() == 7
    assert form["loop.tau"].value() == "2.5"
    assert form["seed_pool"].value() == str(source.seed_pool_id)
    assert form["experiment"].value() == source.experiment_id


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({}, None),
        ({"most_calls": 1500}, "calm-lion-1 had a budget of 1,500 calls; a new run gets its own."),
        ({"most_nanodollars": 2_500_000_000, "most_calls": 9}, "calm-lion-1 had a budget of $2.50 and 9 calls; a new run gets its own."),
    ],
    ids=["lifted", "calls", "both"],
)
def test_a_clone_tells_the_budget_of_its_run_where_that_has_one(client_of, person, caps, words):
    run = make.make_run(person("member"))
    Budget.objects.create(run=run, **caps)
    page = text_of(body(client_of("member").get(f"/runs/new?from={run.pk}")))
    assert (words in page) if words else ("had a budget" not in page)


def test_an_unknown_preset_or_run_is_told(client_of):
    client = client_of("member")
    response = client.get("/runs/new?preset=../../etc/passwd")
    assert response.status_code == 422
    assert "There is no preset" in text_of(body(response))
    assert client.get("/runs/new?from=999").status_code == 404


def test_showing_the_form_writes_nothing(client_of):
    client_of("member").get("/runs/new?preset=demo")
    assert not SeedPool.objects.exists()
    assert not Experiment.objects.exists()


def test_a_viewer_and_a_stranger_launch_nothing(client_of, client):
    assert client_of("viewer").get("/runs/new").status_code == 403
    assert client_of("viewer").post("/runs/new", {}).status_code == 403
    assert client.post("/runs/new", {}).status_code == 302
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("server", "key_env", "who", "launches"),
    [
        ("vllm", "", "member", True),
        ("http://gpu1.example.org:8000/v1", "", "member", False),
        ("https://api.example.org/v1", "EXAMPLE_KEY", "member", True),  # an endpoint's own
        ("https://evil.example.org/v1", "EXAMPLE_KEY", "member", False),
        ("", "EXAMPLE_KEY", "member", False),
        ("http://gpu1.example.org:8000/v1", "", "admin", True),
    ],
)
def test_a_member_names_no_server_for_the_student_that_no_endpoint_has(client_of, server, key_env, who, launches):
    Endpoint.objects.create(name="known", base_url="https://api.example.org/v1", model="m", key_env="EXAMPLE_KEY")
    client = client_of(who)
    changes = {"respond.server": server, "respond.server_key_env": key_env}
    response = client.post("/runs/new?preset=demo", filled(client, **changes))

    assert Run.objects.exists() == launches
    if not launches:
        assert response.status_code == 422
        assert "Only an admin may name a server" in field_of(response.content.decode(), "respond.server")
