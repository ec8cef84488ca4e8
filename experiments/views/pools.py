"""Seed pools: the list, one pool, and the import."""

from __future__ import annotations

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from experiments.forms import PoolForm
from experiments.models import SeedPool
from experiments.roles import requires
from experiments.services.pools import import_seed_pool
from experiments.views.paging import page_of
from experiments.views.people import signed_in
from trainer.errors import ConfigError
from trainer.seed_pools import SeedPoolError, decode_seed_pool

MOST_PROBLEMS = 200


@require_GET
def pools(request: HttpRequest) -> HttpResponse:
    rows = SeedPool.objects.select_related("owner").annotate(n=Count("instructions")).order_by("-created_at", "-id")
    return render(request, "pools.html", {"page": page_of(request, rows)})


@require_GET
def pool(request: HttpRequest, pool_id: int) -> HttpResponse:
    found = get_object_or_404(SeedPool.objects.select_related("owner"), pk=pool_id)
    return render(request, "pool.html", {"pool": found, "page": page_of(request, found.instructions.order_by("position"))})


@requires("member")
@require_http_methods(["GET", "POST"])
def pool_import(request: HttpRequest) -> HttpResponse:
    form = PoolForm(request.POST, request.FILES) if request.method == "POST" else PoolForm()
    problems: list[tuple[int, str]] = []
    if request.method == "POST" and form.is_valid():
        try:
            made = _import(form, request)
        except SeedPoolError as error:
            problems = error.problems
        except ConfigError as error:
            _add_errors(form, error)
        else:
            messages.success(request, f"Imported {made.name}.")
            return redirect("pool", made.pk)
    context = {
        "form": form,
        "problems": problems[:MOST_PROBLEMS],
        "n_problems": len(problems),
        "more": max(len(problems) - MOST_PROBLEMS, 0),
    }
    return render(request, "pool_import.html", context, status=422 if problems or form.errors else 200)


def _import(form: PoolForm, request: HttpRequest) -> SeedPool:
    """Raises SeedPoolError, with the lines that are wrong, and ConfigError for a name that is taken."""
    file, data = form.cleaned_data["file"], form.cleaned_data
    source = file.name if file else "pasted text"
    text = decode_seed_pool(file.read(), name=source) if file else data["text"]
    return import_seed_pool(text, name=data["name"], source=source, licence=data["licence"], owner=signed_in(request))


def _add_errors(form: PoolForm, error: ConfigError) -> None:
    for name, text in error.fields.items() or [("", str(error))]:
        form.add_error(name if name in form.fields else None, text)
