"""A page left open until its session ended: what it asks for leads to the sign-in page, and back to the page."""

import pytest
from django.contrib.sessions.models import Session
from playwright.sync_api import expect

from tests import make
from trainer.plan import Stage, Step


@pytest.fixture
def live_run(person):
    run = make.make_run_until(person("member"), 1, Step.JUDGEMENTS, name="quick-kudu-3")
    make.make_job(run.iterations.get(number=1), Stage.DISCRIMINATION, Step.JUDGEMENTS, items_total=15, items_done=4)
    return run


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/live", "/runs/1/live", "/runs/1/instructions?q=x"])
def test_a_part_of_a_page_sends_the_whole_page_to_sign_in_and_back(client, path):
    response = client.get(path, headers={"HX-Request": "true", "HX-Current-URL": "http://testserver/runs/1/?page=2"})
    assert response.status_code == 200
    assert response.content == b""
    assert response.headers["HX-Redirect"] == "/sign-in/?next=/runs/1/%3Fpage%3D2"


@pytest.mark.django_db
@pytest.mark.parametrize("page", ["https://evil.example/runs/1/", "", "nonsense"])
def test_it_comes_back_to_no_other_site(client, page):
    response = client.get("/live", headers={"HX-Request": "true", "HX-Current-URL": page})
    assert response.headers["HX-Redirect"].startswith("/sign-in/?next=/")
    assert "evil" not in response.headers["HX-Redirect"]


def test_who_is_signed_in_gets_the_part(client_of, live_run):
    response = client_of("viewer").get(f"/runs/{live_run.pk}/live", headers={"HX-Request": "true"})
    assert "HX-Redirect" not in response.headers
    assert b'id="run-live"' in response.content


@pytest.mark.django_db(transaction=True)
def test_a_run_page_left_open_becomes_the_sign_in_page_and_not_a_mixture(page_of, live_run):
    page = page_of("viewer")
    page.goto(f"/runs/{live_run.pk}/")
    expect(page.locator("#run-live")).to_be_visible()
    Session.objects.all().delete()
    page.wait_for_url(f"**/sign-in/?next=/runs/{live_run.pk}/")
    expect(page.locator("#run-live")).to_have_count(0)
    expect(page.locator("main")).to_have_count(1)
