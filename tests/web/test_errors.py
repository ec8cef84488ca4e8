"""Error pages in the look of the others."""

import pytest
from django.test import Client
from django.views.defaults import bad_request

from experiments.models import SeedPool
from tests import make
from tests.web.pages import body, text_of


def test_a_page_that_is_not_there(client_of):
    response = client_of("viewer").get("/no/such/page")
    assert response.status_code == 404
    assert "There is no such page." in body(response)
    assert 'aria-label="Main"' in body(response)


def test_a_page_that_is_not_for_the_role_says_which_role_it_needs(client_of):
    response = client_of("viewer").get("/runs/new")
    assert response.status_code == 403
    assert "needs the role member" in body(response)


def test_who_is_turned_away_costs_the_log_one_line(client_of, caplog):
    client_of("viewer").get("/runs/new")
    [record] = [record for record in caplog.records if record.name == "django.request"]
    assert record.getMessage() == "Forbidden (Permission denied): /runs/new"
    assert record.exc_info is None


def test_a_fault_of_ours_keeps_its_traceback_in_the_log(client_of, monkeypatch, caplog):
    monkeypatch.setattr("experiments.views.pools.page_of", lambda *_: 1 / 0)
    client = client_of("viewer")
    client.raise_request_exception = False
    client.get("/pools/")
    assert "ZeroDivisionError" in caplog.text


def test_a_page_that_takes_no_form_says_so_in_the_look_of_the_others(client_of):
    response = client_of("member").post("/jobs/")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET"
    assert "It shows a page and takes no form." in text_of(body(response))
    assert 'aria-label="Main"' in body(response)


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("/runs/{run}/stop", "/runs/{run}/"),
        ("/runs/{run}/resume", "/runs/{run}/"),
        ("/runs/forecast?preset=paper-7b", "/runs/new?preset=paper-7b"),
    ],
)
def test_reloading_what_a_form_was_answered_with_leads_to_the_page_of_the_form(client_of, person, address, page):
    run = make.make_finished_run(person("member"))
    client = client_of("member")
    response = client.get(address.format(run=run.pk), follow=True)
    assert response.redirect_chain == [(page.format(run=run.pk), 302)]
    assert response.status_code == 200


def test_other_methods_than_those_of_forms_are_refused(client_of, person):
    run = make.make_run(person("member"))
    assert client_of("member").delete(f"/runs/{run.pk}/stop").status_code == 405


def test_a_form_without_its_token(person):
    client = Client(enforce_csrf_checks=True)
    client.force_login(person("member"), backend="django.contrib.auth.backends.ModelBackend")
    response = client.post("/experiments/new", {"name": "x"})
    assert response.status_code == 403
    assert "Nothing was changed." in body(response)


def test_a_fault_of_ours_tells_that_runs_go_on(client_of, monkeypatch):
    from experiments.views import pools

    monkeypatch.setattr(pools, "page_of", lambda *_: 1 / 0)
    client = client_of("viewer")
    client.raise_request_exception = False
    response = client.get("/pools/")
    assert response.status_code == 500
    assert "Your runs go on" in body(response)


@pytest.mark.parametrize(
    "address",
    [
        "/runs/{run}/scores/%00/0/",
        "/runs/{run}/scores/demo_skills/1/?task=%00",
        "/runs/{run}/instructions?q=%00",
        "/runs/{run}/instructions?kind=a%00b",
        "/runs/{run}/candidates?fate=%00",
        "/jobs/?state=%00",
        "/compare?runs=1,%00",
        "/runs/new?preset=%00",
        "/sign-in/?next=%00",
        "/static/%00",
        "/?%00",
    ],
)
def test_a_nul_in_the_address_is_a_bad_request_and_no_fault_of_ours(client_of, person, caplog, address):
    run = make.make_finished_run(person("member"))
    response = client_of("member").get(address.format(run=run.pk))
    assert response.status_code == 400
    assert "This address cannot be read." in body(response)
    assert "Content-Security-Policy" in response.headers
    assert "Traceback" not in caplog.text


def test_a_percent_sign_before_two_noughts_is_no_nul(client_of, person):
    run = make.make_finished_run(person("member"))
    response = client_of("viewer").get(f"/runs/{run.pk}/instructions?q=%2500")
    assert response.status_code == 200
    assert 'value="%00"' in body(response)


@pytest.mark.django_db
def test_a_nul_in_a_cookie_is_a_bad_request(client):
    response = client.get("/", headers={"Cookie": 'sessionid="aaaaaaaaaa\\000"'})
    assert response.status_code == 400


@pytest.mark.django_db
def test_a_host_name_that_is_not_ours_is_told_which_setting_lacks_it(client):
    response = client.get("/sign-in/", headers={"Host": "elsewhere.example"})
    assert response.status_code == 400
    assert "ALLOWED_HOSTS" in body(response)


def test_a_pool_larger_than_djangos_limit_can_be_pasted(client_of):
    line = '{"instruction": "Name a river. ' + "x" * 90_000 + '%d"}\n'
    text = "".join(line % i for i in range(34))
    assert len(text) > 3_000_000
    client_of("member").post("/pools/import", {"name": "large", "text": text})
    assert SeedPool.objects.get(name="large").instructions.count() == 34


def test_what_is_larger_still_is_told_to_come_as_a_file(client_of, settings):
    client = client_of("member")
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    response = client.post("/pools/import", {"name": "larger", "text": "x" * 2000})
    assert response.status_code == 400
    assert "Upload a large pool as a file" in text_of(body(response))
    assert not SeedPool.objects.exists()


def test_the_page_names_the_limit_of_the_settings(rf, settings):
    page = bad_request(rf.post("/"), ValueError()).content.decode()
    assert f"{settings.DATA_UPLOAD_MAX_MEMORY_SIZE // 1_000_000} MB" in page
