"""Reading pages as a person would: the links on them, the totals they state, and how much they ask of the database."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from typing import Any

from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

LINK = re.compile(r'<a[^>]*? href="([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def links(page: str) -> list[tuple[str, str]]:
    """(address, text) of every link, unescaped."""
    return [(html.unescape(address), text_of(text)) for address, text in LINK.findall(page)]


def total(page: str) -> int:
    """How many rows a list says it has."""
    found = re.search(r'data-total="(\d+)"', page)
    assert found, "the list states no total"
    return int(found[1])


def body(response: Any) -> str:
    assert isinstance(response, HttpResponse)
    return response.content.decode()


def figure(page: str, name: str) -> dict[str, Any]:
    """The data of a chart, as the script on the page reads it."""
    found = re.search(rf'<script id="{name}-data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found, f"no figure {name}"
    data: dict[str, Any] = json.loads(found[1])
    return data


def queries(client: Client, url: str) -> int:
    """How many queries a page takes."""
    client.get(url)  # content types, sessions and the like are asked once
    with CaptureQueriesContext(connection) as context:
        assert client.get(url).status_code == 200
    return len(context)


def asks_the_same_of(client: Client, url: str, *, after: Callable[[], object]) -> int:
    """Check that a page takes as many queries once there are more rows; gives how many."""
    before = queries(client, url)
    after()
    assert queries(client, url) == before
    return before
