"""Lists a page at a time."""

from __future__ import annotations

from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest

PAGE_SIZE = 50


def page_of(request: HttpRequest, rows: QuerySet[Any], *, size: int = PAGE_SIZE) -> Page[Any]:
    """The page of a list that the URL asks for; one that is not there gives the nearest."""
    return Paginator(rows, size).get_page(request.GET.get("page"))


def page_of_many(request: HttpRequest, rows: QuerySet[Any], *, total: int, size: int = PAGE_SIZE) -> Page[Any]:
    """A page of a list that may be a million rows long.

    The ids are found first: rows that are skipped on the way to a late page are then neither read whole nor joined.
    """
    paginator = Paginator(rows.values_list("pk", flat=True), size)
    paginator.count = total  # told, where the caller knows a quicker way to it than counting the rows
    page = paginator.get_page(request.GET.get("page"))
    ids = list(page.object_list)
    found = {row.pk: row for row in rows.filter(pk__in=ids)}
    page.object_list = [found[pk] for pk in ids if pk in found]
    return page
