"""Endpoints: everybody sees them, an admin sets them. Keys stay in the environment."""

from __future__ import annotations

import os

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from experiments.forms import EndpointForm
from experiments.models import Endpoint
from experiments.roles import requires
from experiments.views.paging import page_of


@require_GET
def endpoints(request: HttpRequest) -> HttpResponse:
    page = page_of(request, Endpoint.objects.order_by("name"))
    rows = [(endpoint, endpoint.key_env in os.environ) for endpoint in page.object_list]
    return render(request, "endpoints.html", {"page": page, "rows": rows})


@requires("admin")
@require_http_methods(["GET", "POST"])
def endpoint_new(request: HttpRequest) -> HttpResponse:
    return _edit(request, Endpoint())


@requires("admin")
@require_http_methods(["GET", "POST"])
def endpoint_edit(request: HttpRequest, endpoint_id: int) -> HttpResponse:
    return _edit(request, get_object_or_404(Endpoint, pk=endpoint_id))


def _edit(request: HttpRequest, endpoint: Endpoint) -> HttpResponse:
    form = EndpointForm(request.POST if request.method == "POST" else None, instance=endpoint)
    if request.method == "POST" and form.is_valid():
        saved = form.save()
        messages.success(request, f"Saved {saved.name}. Runs launched from now on use it; earlier ones keep what they froze.")
        return redirect("endpoints")
    return render(request, "endpoint_edit.html", {"form": form, "is_new": endpoint.pk is None}, status=422 if form.errors else 200)
