"""Endpoints: everybody sees them, an admin sets them, and no key is ever kept."""

import pytest

from experiments.models import Endpoint
from tests.web.pages import asks_the_same_of, body, text_of

GOOD = {
    "name": "big",
    "base_url": "https://api.example.com/v1/",
    "model": "big-model",
    "key_env": "BIG_KEY",
    "max_at_once": "8",
    "timeout_s": "60",
    "retries": "5",
}


def test_an_admin_adds_and_changes_one(client_of):
    client = client_of("admin")
    assert client.post("/endpoints/new", GOOD).headers["Location"] == "/endpoints/"
    endpoint = Endpoint.objects.get()
    assert endpoint.base_url == "https://api.example.com/v1"
    client.post(f"/endpoints/{endpoint.pk}/edit", {**GOOD, "model": "bigger"})
    endpoint.refresh_from_db()
    assert endpoint.model == "bigger"


@pytest.mark.parametrize(
    ("field", "typed", "complaint"),
    [
        ("base_url", "ftp://example.com/v1", "http:// or https://"),
        ("base_url", "javascript:alert(1)", "http:// or https://"),
        ("name", "offline", "the name of the demo"),
        ("key_env", "AIzaSyD4abcdefghijklmnop", "Not the name of a variable"),
        ("base_url", "https://me:secret@example.com/v1", "No name or password"),
        ("key_env", "sk-proj-abcdefghijklmnop", "looks like a key"),
        ("key_env", "MY KEY", "Not the name of a variable"),
        ("key_env", "1KEY", "Not the name of a variable"),
        ("key_env", "SECRET_KEY", "a setting of LionWeb"),
        ("key_env", "DATABASE_URL", "a setting of LionWeb"),
        ("key_env", "celery_broker_url", "Not the name of a variable"),
        ("key_env", "LIONWEB_DATA", "a setting of LionWeb"),
        ("key_env", "DJANGO_SETTINGS_MODULE", "a setting of LionWeb"),
        ("max_at_once", "0", "Must be from 1 to 512."),
        ("timeout_s", "nan", "number"),
        ("retries", "-1", "greater than or equal to 0"),
        ("name", "two words", "valid"),
    ],
)
def test_a_bad_value_is_refused_beside_its_field(client_of, field, typed, complaint):
    response = client_of("admin").post("/endpoints/new", {**GOOD, field: typed})
    page = body(response)
    part = page[page.index(f'class="field field-{field}') :]
    assert response.status_code == 422
    assert complaint in text_of(part.partition('class="field field-')[2].partition('class="field field-')[0])
    assert not Endpoint.objects.exists()


def test_a_pasted_key_does_not_come_back_on_the_page(client_of):
    page = body(client_of("admin").post("/endpoints/new", {**GOOD, "key_env": "sk-proj-abcdefghijklmnop"}))
    assert "sk-proj-abcdefghijklmnop" not in page


def test_the_list_says_whether_the_key_is_set_here_and_never_the_key(client_of, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-the-secret")
    monkeypatch.delenv("OTHER_KEY", raising=False)
    Endpoint.objects.create(name="big", base_url="https://a.example/v1", model="m", key_env="BIG_KEY")
    Endpoint.objects.create(name="other", base_url="https://b.example/v1", model="m", key_env="OTHER_KEY")
    page = body(client_of("viewer").get("/endpoints/"))
    assert "BIG_KEY set here" in text_of(page)
    assert "OTHER_KEY not set here" in text_of(page)
    assert "sk-the-secret" not in page


def test_more_endpoints_take_no_more_queries(client_of, db):
    Endpoint.objects.create(name="first", base_url="https://a.example/v1", model="m")

    def add() -> None:
        for i in range(5):
            Endpoint.objects.create(name=f"e{i}", base_url="https://a.example/v1", model="m")

    assert asks_the_same_of(client_of("viewer"), "/endpoints/", after=add) <= 5


@pytest.mark.parametrize("role", ["viewer", "member"])
def test_nobody_less_than_an_admin_sets_them(client_of, role):
    endpoint = Endpoint.objects.create(name="big", base_url="https://a.example/v1", model="m")
    client = client_of(role)
    for url in ("/endpoints/new", f"/endpoints/{endpoint.pk}/edit"):
        assert client.get(url).status_code == 403
        assert client.post(url, GOOD).status_code == 403
    assert "/endpoints/new" not in body(client.get("/endpoints/"))


def test_a_stranger_sees_none(client, db):
    assert client.get("/endpoints/").status_code == 302
    assert client.post("/endpoints/new", GOOD).status_code == 302
    assert not Endpoint.objects.exists()


def test_a_host_of_one_word_is_an_address_too(client_of):
    assert client_of("admin").post("/endpoints/new", {**GOOD, "base_url": "http://vllm:8000/v1"}).status_code == 302
    assert Endpoint.objects.get().base_url == "http://vllm:8000/v1"
