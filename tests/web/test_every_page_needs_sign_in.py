"""A route added outside the login is how such software gets broken into: every URL is tried by somebody who is not signed in."""

import re
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern, RoutePattern
from django.utils.regex_helper import normalize

PUBLIC = {"/health", "/sign-in/", "/sign-in/link/", "/sign-out/"}
SAMPLES = {"int": "1", "uuid": "00000000-0000-0000-0000-000000000001"}


def walk(patterns: list[URLPattern | URLResolver], prefix: str = "/") -> Iterator[str]:
    for pattern in patterns:
        path = prefix + fill_in(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from walk(pattern.url_patterns, path)
        else:
            yield path


def fill_in(pattern: object) -> str:
    """A path that the pattern matches: every parameter gets a sample."""
    if isinstance(pattern, RoutePattern):
        return re.sub(r"<(?:(\w+):)?\w+>", lambda found: SAMPLES.get(found[1] or "", "x"), str(pattern))
    assert isinstance(pattern, RegexPattern)
    template, names = normalize(str(pattern))[0]
    return template % dict.fromkeys(names, "x")


PATHS = sorted(set(walk(get_resolver().url_patterns)))


def turns_a_stranger_away(client: Client, method: str, path: str) -> bool:
    response = client.generic(method, path)
    if response.status_code in {401, 403}:
        return True
    # The admin has a door of its own, which leads to ours and is tried here as every other page.
    return response.status_code == 302 and response.headers["Location"].startswith(("/sign-in/", "/admin/login/"))


@pytest.mark.django_db
@pytest.mark.parametrize("path", [path for path in PATHS if path not in PUBLIC])
def test_a_stranger_gets_nothing(client: Client, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert turns_a_stranger_away(client, method, path), f"{method} {path} is open, and not listed as public"


def test_the_list_of_public_pages_names_real_ones() -> None:
    assert set(PATHS) >= PUBLIC


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/health", "/sign-in/"])
def test_every_page_forbids_inline_scripts(client: Client, path: str) -> None:
    policy = client.get(path).headers["Content-Security-Policy"]

    assert re.search(r"script-src 'self'(;|$)", policy)
    assert "frame-ancestors 'none'" in policy
