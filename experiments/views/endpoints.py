"""Endpoints: everybody sees them, a member tests them, an admin sets them. Keys stay in the environment."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from experiments.budget_form import BudgetForm
from experiments.endpoint_board import read_endpoint, states_of
from experiments.endpoint_form import SECTIONS, SETTINGS, EndpointForm
from experiments.models import Endpoint
from experiments.roles import requires
from experiments.services.endpoint_tests import try_out
from experiments.templatetags.lionweb import setting_value
from experiments.views.paging import page_of

HOLDS = (
    "Limits, prices and timeouts hold at once, for runs that are under way as well; address, model, structured output and extra "
    "parameters stay as each run froze them."
)

ZERO_WORDS = {"rpm": "as it tells", "input_tpm": "none known", "output_tpm": "none known", "price_cached": "as other input"}
UNITS_SHOWN = frozenset({"s", "$ per million tokens"})
"""Units that labels do not say already."""


@require_GET
def endpoints(request: HttpRequest) -> HttpResponse:
    page = page_of(request, Endpoint.objects.order_by("name"))
    return render(request, "endpoints.html", {"page": page, "states": states_of(list(page.object_list))})


@require_GET
def endpoint(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    """What is set, how the endpoint is now, what it has cost, and its budget."""
    return render(request, "endpoint.html", _context(get_object_or_404(Endpoint, pk=endpoint_id)))


@requires("member")
@require_POST
def endpoint_test(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    """Call the endpoint once, and say what came of it: beside the button, or on the whole page where there is no script."""
    found = get_object_or_404(Endpoint, pk=endpoint_id)
    tried = try_out(found)
    if request.headers.get("HX-Request"):
        return render(request, "_endpoint_test.html", {"tried": tried, "board": read_endpoint(found)})
    return render(request, "endpoint.html", {**_context(found), "tried": tried})


def _context(found: Endpoint) -> dict[str, Any]:
    board = read_endpoint(found)
    return {"endpoint": found, "board": board, "sections": _settings(found), "form": BudgetForm(budget=board.budget)}


def _settings(found: Endpoint) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings as the form groups them: (title, [(label, value in words)])."""
    return [
        (title, [(SETTINGS[name].metadata["label"], _value_words(name, getattr(found, name))) for name in names if name in SETTINGS])
        for title, names in SECTIONS.items()
    ]


def _value_words(name: str, value: Any) -> str:
    if value == 0 and name in ZERO_WORDS:
        return ZERO_WORDS[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        unit = SETTINGS[name].metadata["unit"]
        return f"{value:,.10g}" + (f" {unit}" if unit in UNITS_SHOWN else "")
    return setting_value(value)


@requires("admin")
@require_http_methods(["GET", "POST"])
def endpoint_new(request: HttpRequest) -> HttpResponse:
    return _edit(request, Endpoint())


@requires("admin")
@require_http_methods(["GET", "POST"])
def endpoint_edit(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    return _edit(request, get_object_or_404(Endpoint, pk=endpoint_id))


def _edit(request: HttpRequest, endpoint: Endpoint) -> HttpResponse:
    is_new = endpoint.pk is None
    form = EndpointForm(request.POST if request.method == "POST" else None, instance=endpoint)
    if request.method == "POST" and form.is_valid():
        saved = form.save()
        messages.success(request, f"Saved {saved.name}. {'Test it before a run does.' if is_new else HOLDS}")
        return redirect("endpoint", saved.pk)
    context = {"form": form, "is_new": is_new, "holds": HOLDS}
    return render(request, "endpoint_edit.html", context, status=422 if form.errors else 200)
