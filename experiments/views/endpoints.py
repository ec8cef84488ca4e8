"""Endpoints: everybody sees them, a member tests them, an admin sets them. Keys stay in the environment."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from experiments.budget_form import BudgetForm
from experiments.endpoint_board import limit_words, read_endpoint, states_of
from experiments.endpoint_form import PRICES, SECTIONS, SETTINGS, EndpointForm, label_of
from experiments.models import Endpoint
from experiments.querysets_calls import endpoints_offered
from experiments.roles import requires
from experiments.services import endpoint_archive as archives
from experiments.services.endpoint_tests import try_out
from experiments.templatetags.lionweb import setting_value
from experiments.templatetags.money import price
from experiments.views.methods import post_from
from experiments.views.paging import page_of

HOLDS = (
    "Limits, prices and timeouts hold at once, for runs that are under way as well, but for more calls at once, which the next step takes "
    "up; address, model, structured output and extra parameters stay as each run froze them. A run that "
    "has no answer from it takes them all up: stop it, and resume it."
)

ZERO_WORDS = {"rpm": "as it tells", "input_tpm": "none known", "output_tpm": "none known", "price_cached": "as other input"}


def get_endpoint(endpoint_id: int) -> Endpoint:
    """An endpoint, or 404."""
    found = Endpoint.objects.filter(pk=endpoint_id).first()
    if found is None:
        raise Http404("There is no such endpoint.")
    return found


@require_GET
def endpoints(request: HttpRequest) -> HttpResponse:
    """The endpoints that are offered to new runs; with `archived=yes` in the URL, those that no longer are."""
    archived = Endpoint.objects.filter(archived_at__isnull=False).order_by("name")
    shows_archived = request.GET.get("archived") == "yes"
    page = page_of(request, archived if shows_archived else endpoints_offered())
    context = {"page": page, "states": states_of(list(page.object_list)), "shows_archived": shows_archived, "archived": archived.count()}
    return render(request, "endpoints.html", context)


@require_GET
def endpoint(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    """What is set, how the endpoint is now, what it has cost, and its budget."""
    return render(request, "endpoint.html", _context(get_endpoint(endpoint_id)))


@post_from("endpoint")
@requires("member")
def endpoint_test(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    """Try the endpoint, and say what came of it: beside the button, or on the whole page where there is no script."""
    found = get_endpoint(endpoint_id)
    tried = try_out(found)
    came = {"tried": tried, "limits": [(name, limit_words(window)) for name, window in tried.limits]}
    if request.headers.get("HX-Request"):
        return render(request, "_endpoint_test.html", {**came, "board": read_endpoint(found)})
    return render(request, "endpoint.html", {**_context(found), **came})


def _context(found: Endpoint) -> dict[str, Any]:
    board = read_endpoint(found)
    return {"endpoint": found, "board": board, "sections": _settings(found), "form": BudgetForm(budget=board.budget)}


def _settings(found: Endpoint) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings as the form groups them: (title, [(label, value in words)])."""
    return [
        (title, [(label_of(name), _value_words(name, getattr(found, name))) for name in names if name in SETTINGS])
        for title, names in SECTIONS.items()
    ]


def _value_words(name: str, value: Any) -> str:
    if value == 0 and name in ZERO_WORDS:
        return ZERO_WORDS[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        unit = SETTINGS[name].metadata["unit"]
        if unit == PRICES:
            return f"{price(value)} per million tokens"
        return f"{value:,.10g}" + (" s" if unit == "s" else "")  # labels say the other units
    return setting_value(value)


@requires("admin")
@require_http_methods(["GET", "POST"])
def endpoint_new(request: HttpRequest) -> HttpResponse:
    return _edit(request, Endpoint())


@requires("admin")
@require_http_methods(["GET", "POST"])
def endpoint_edit(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    return _edit(request, get_endpoint(endpoint_id))


def _edit(request: HttpRequest, endpoint: Endpoint) -> HttpResponse:
    is_new = endpoint.pk is None
    form = EndpointForm(request.POST if request.method == "POST" else None, instance=endpoint)
    if request.method == "POST" and form.is_valid():
        saved = form.save()
        messages.success(request, f"Saved {saved.name}. {'Test it before a run does.' if is_new else HOLDS}")
        return redirect("endpoint", saved.pk)
    context = {"form": form, "is_new": is_new, "holds": HOLDS}
    return render(request, "endpoint_edit.html", context, status=422 if form.errors else 200)


@post_from("endpoint")
@requires("admin")
def endpoint_archive(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    """Offer an endpoint to no new run."""
    found = get_endpoint(endpoint_id)
    if archives.archive(found):
        messages.success(request, f"Archived {found.name}: new runs are not offered it. Runs that use it go on.")
    return redirect("endpoint", found.pk)


@post_from("endpoint")
@requires("admin")
def endpoint_restore(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    """Offer an archived endpoint again."""
    found = get_endpoint(endpoint_id)
    if archives.restore(found):
        messages.success(request, f"Restored {found.name}: new runs may use it again.")
    return redirect("endpoint", found.pk)
