"""Lists a page at a time."""

from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest

PAGE_SIZE = 50


def page_of(request: HttpRequest, rows: "QuerySet[Any] | list[Any]", *, size: int = PAGE_SIZE) -> Page[Any]:
    """The page of a list that the URL asks for; one that is not there gives the nearest."""
    return Paginator(rows, size).get_page(request.GET.get("page"))
