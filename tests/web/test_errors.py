"""Error pages in the look of the others."""

from django.test import Client

from tests.web.pages import body


def test_a_page_that_is_not_there(client_of):
    response = client_of("viewer").get("/no/such/page")
    assert response.status_code == 404
    assert "There is no such page." in body(response)
    assert 'aria-label="Main"' in body(response)


def test_a_page_that_is_not_for_the_role_says_which_role_it_needs(client_of):
    response = client_of("viewer").get("/runs/new")
    assert response.status_code == 403
    assert "needs the role member" in body(response)


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
