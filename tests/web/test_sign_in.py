from io import StringIO
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from playwright.sync_api import Page, expect

from experiments.roles import ROLES, Role, give_role, has_role, requires, role_of

pytestmark = pytest.mark.django_db


def make_link(*arguments: str) -> str:
    out = StringIO()
    call_command("sign_in_link", *arguments, stdout=out)
    return out.getvalue().strip()


def path_of(link: str) -> str:
    parts = urlsplit(link)
    return f"{parts.path}?{parts.query}"


def token_of(link: str) -> str:
    return parse_qs(urlsplit(link).query)["sesame"][0]


def press(client: Client, link: str, **data: str) -> HttpResponse:
    return client.post("/sign-in/link/", {"sesame": token_of(link), **data})


def is_signed_in(client: Client) -> bool:
    return "_auth_user_id" in client.session


def test_whoever_is_not_signed_in_is_sent_to_the_sign_in_page_and_told_how(client: Client) -> None:
    response = client.get("/admin/", follow=True)

    assert response.redirect_chain[-1][0].startswith("/sign-in/?next=/admin/")
    assert b"python manage.py sign_in_link" in response.content


def test_the_command_makes_an_admin_who_has_no_password() -> None:
    make_link()

    user = User.objects.get(username="admin")
    assert not user.has_usable_password()
    assert role_of(user) == "admin"
    assert user.is_staff


def test_a_new_person_is_a_viewer_unless_a_role_is_given() -> None:
    make_link("vera")
    make_link("max", "--role", "member")

    assert [role_of(User.objects.get(username=name)) for name in ("vera", "max")] == ["viewer", "member"]


def test_a_second_link_leaves_the_role_as_it_is() -> None:
    make_link("max", "--role", "member")
    make_link("max")

    assert role_of(User.objects.get(username="max")) == "member"


def test_looking_at_a_link_does_not_use_it_up(client: Client) -> None:
    link = make_link()

    for _ in range(3):
        assert b"Sign in as admin" in client.get(path_of(link)).content
    assert not is_signed_in(client)

    assert press(client, link).status_code == 302
    assert is_signed_in(client)


def test_a_link_works_once() -> None:
    link = make_link()
    press(Client(), link)

    stranger = Client()
    assert stranger.get(path_of(link)).status_code == 403
    assert press(stranger, link).status_code == 403
    assert not is_signed_in(stranger)


def test_a_link_is_good_for_an_hour(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    link = make_link()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3700)

    assert press(client, link).status_code == 403


@pytest.mark.parametrize("token", ["", "nonsense", "AAAAAQz5LO_krZI_r3EX0BS_"])
def test_a_made_up_link_is_refused(client: Client, token: str) -> None:
    assert client.post("/sign-in/link/", {"sesame": token}).status_code == 403
    response = client.get("/sign-in/link/", {"sesame": token})
    assert response.status_code == 403
    assert b"was used already, is older, or was not copied whole" in response.content


def test_somebody_who_was_deactivated_cannot_use_their_link(client: Client) -> None:
    link = make_link("vera")
    User.objects.update(is_active=False)

    assert press(client, link).status_code == 403


def test_signing_in_needs_the_csrf_token() -> None:
    client = Client(enforce_csrf_checks=True)

    assert press(client, make_link()).status_code == 403
    assert not is_signed_in(client)


def test_signing_in_leads_to_the_page_that_was_asked_for(client: Client) -> None:
    assert press(client, make_link(), next="/runs/3/").headers["Location"] == "/runs/3/"


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example/", "javascript:alert(1)"])
def test_signing_in_never_leads_to_another_site(client: Client, elsewhere: str) -> None:
    assert press(client, make_link(), next=elsewhere).headers["Location"] == "/"


def test_signing_out_needs_a_post_and_ends_the_session(client: Client) -> None:
    press(client, make_link())

    assert client.get("/sign-out/").status_code == 405
    client.post("/sign-out/")
    assert not is_signed_in(client)


def test_the_admin_pages_know_no_password_and_let_only_admins_in(client: Client) -> None:
    press(client, make_link("max", "--role", "member"))
    assert client.get("/admin/", follow=True).status_code == 403

    press(client, make_link())
    assert client.get("/admin/").status_code == 200
    assert client.get("/admin/login/").headers["Location"] == "/admin/"
    assert client.get("/admin/login/?next=/admin/auth/user/").headers["Location"] == "/admin/auth/user/"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_includes_the_lesser_ones(role: Role) -> None:
    user = User.objects.create_user("somebody")
    give_role(user, role)

    assert [wanted for wanted in ROLES if has_role(user, wanted)] == list(ROLES[: ROLES.index(role) + 1])


def test_taking_the_admin_role_away_takes_the_admin_pages_away() -> None:
    user = User.objects.create_user("somebody")
    give_role(user, "admin")
    give_role(user, "viewer")

    assert role_of(user) == "viewer"
    assert not user.is_staff


def test_a_guarded_view_refuses_a_lesser_role_before_it_runs(rf: RequestFactory) -> None:
    @requires("member")
    def launch(request: HttpRequest) -> HttpResponse:
        raise AssertionError("must not run")

    request = rf.get("/")
    request.user = User.objects.create_user("vera")
    with pytest.raises(PermissionDenied, match="needs the role member"):
        launch(request)


@override_settings(LIONWEB_URL="https://lion.example")
def test_the_link_names_the_address_that_people_use() -> None:
    assert make_link().startswith("https://lion.example/sign-in/link/?sesame=")


def test_health_is_open_and_says_that_the_database_answers(client: Client) -> None:
    response = client.get("/health")

    assert response.status_code == 200
    assert response.json() == {"ok": True}


@pytest.mark.django_db(transaction=True)
def test_a_person_signs_in_by_one_click(browser_page: Page) -> None:
    page = browser_page
    page.goto(path_of(make_link()) + "&next=/health")
    page.get_by_role("button", name="Sign in").click()

    page.wait_for_url("**/health")
    expect(page.locator("body")).to_contain_text('"ok": true')
