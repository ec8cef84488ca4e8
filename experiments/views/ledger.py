"""A run's ledger, the completions behind each of its numbers, one completion, and budgets."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods
from django.views.decorators.vary import vary_on_headers

from experiments import querysets_calls
from experiments.budget_form import BudgetForm
from experiments.forms import CompletionFilterForm
from experiments.ledger import budget_meters, read_ledger
from experiments.models import Budget, Candidate, Completion, Endpoint, Judgement, LedgerLine, Response
from experiments.roles import requires
from experiments.services.budget_changes import set_budget
from experiments.services.budgets import is_spent, spent
from experiments.views.endpoints import get_endpoint
from experiments.views.methods import post_from
from experiments.views.paging import page_of_many
from experiments.views.people import signed_in
from experiments.views.runs import get_run

MOST_USES = 20


@require_GET
def run_ledger(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_run(run_id)
    budget = Budget.objects.filter(run=run).first()
    so_far = spent(run)
    context = {
        "run": run,
        "ledger": read_ledger(run),
        "spent": so_far,
        "budget": budget,
        "meters": budget_meters(budget, so_far),
        "budget_form": BudgetForm(budget=budget),
    }
    return render(request, "ledger.html", context)


@require_GET
@vary_on_headers("HX-Request")
def run_completions(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_run(run_id)
    form = CompletionFilterForm(request.GET, iterations=sorted(run.iterations.values_list("number", flat=True)))
    rows = querysets_calls.completions_of(run, **form.chosen)
    line = LedgerLine.objects.filter(run=run, pk=form.chosen["line"]).select_related("iteration").first() if "line" in form.chosen else None
    unknown = sorted(request.GET.keys() - form.fields.keys() - {"page"})
    context = {"run": run, "form": form, "line": line, "unknown": unknown, "page": page_of_many(request, rows, total=rows.count())}
    return render(request, "_completions_list.html" if request.headers.get("HX-Request") else "completions.html", context)


@require_GET
def completion(request: HttpRequest, key: str) -> HttpResponse:
    """One paid call: what was asked and answered, what it cost, who paid, and what it is used for."""
    found = Completion.objects.select_related("line__run__experiment", "line__iteration").filter(pk=key).first()
    if found is None:
        raise Http404("There is no such call.")
    parameters = {name: value for name, value in found.request.items() if name != "messages"}
    context = {
        "completion": found,
        "line": found.line,
        "run": found.line.run if found.line else None,
        "asked": found.request.get("messages", []),
        "parameters": sorted(parameters.items()),
        **_uses(found),
    }
    return render(request, "completion.html", context)


def _uses(found: Completion) -> dict[str, Any]:
    """The first rows that were made from a completion."""
    of_run = ("instruction__run", "iteration")
    return {
        "responses": Response.objects.filter(completion=found).select_related(*of_run)[:MOST_USES],
        "judgements": Judgement.objects.filter(completion=found).select_related(*of_run)[:MOST_USES],
        "candidates": Candidate.objects.filter(completion=found).select_related("parent", "iteration__run")[:MOST_USES],
    }


@post_from("run")
@requires("admin")
def run_budget(request: HttpRequest, run_id: int) -> HttpResponse:
    """Set a run's budget; whoever launched the run gave it its first. Where the run had stopped at it, it goes on."""
    run = get_run(run_id)
    form = BudgetForm(request.POST)
    if not form.is_valid():
        return render(request, "budget.html", {"owner": run, "run": run, "form": form, "spent": spent(run)}, status=422)
    resumed = set_budget(run=run, **form.caps, by=signed_in(request))
    _tell(request, resumed, Budget.objects.filter(run=run).first(), went_on="The run goes on where it was.")
    return redirect("run", run_id)


@require_http_methods(["GET", "POST"])
def endpoint_budget(request: HttpRequest, endpoint_id: int) -> HttpResponseBase:
    """What all runs have spent on an endpoint; an admin sets the most they may."""
    endpoint = get_endpoint(endpoint_id)
    if request.method == "POST":
        return _set_endpoint_budget(request, endpoint)
    budget = Budget.objects.filter(endpoint=endpoint).first()
    return render(request, "budget.html", _endpoint_context(endpoint, BudgetForm(budget=budget), budget))


@requires("admin")
def _set_endpoint_budget(request: HttpRequest, endpoint: Endpoint) -> HttpResponse:
    form = BudgetForm(request.POST)
    if not form.is_valid():
        return render(request, "budget.html", _endpoint_context(endpoint, form, None), status=422)
    resumed = set_budget(endpoint=endpoint, **form.caps, by=signed_in(request))
    went_on = f"{resumed} run{'s go' if resumed > 1 else ' goes'} on."
    _tell(request, resumed, Budget.objects.filter(endpoint=endpoint).first(), went_on=went_on)
    return redirect("endpoint_budget", endpoint.pk)


def _endpoint_context(endpoint: Endpoint, form: BudgetForm, budget: Budget | None) -> dict[str, Any]:
    so_far = spent(endpoint)
    return {
        "owner": endpoint,
        "endpoint": endpoint,
        "form": form,
        "spent": so_far,
        "budget": budget,
        "meters": budget_meters(budget, so_far),
    }


def _tell(request: HttpRequest, resumed: int, budget: Budget | None, *, went_on: str) -> None:
    if resumed:
        messages.success(request, f"The budget is set. {went_on}")
    elif budget and is_spent(budget):
        messages.warning(request, "The budget is set, and it is spent already: no further call will be made until it is raised.")
    else:
        messages.success(request, "The budget is set.")
