"""An experiment with its runs, and new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from experiments import charts, querysets, querysets_calls
from experiments.forms import ExperimentForm
from experiments.models import BenchmarkScore, Experiment
from experiments.querysets_calls import RunCost
from experiments.roles import requires
from experiments.views.paging import page_of
from experiments.views.people import signed_in


@dataclass(frozen=True)
class RunRow:
    """A run in the table of its experiment."""

    run: Any
    hard_shares: Sequence[float]
    last_score: BenchmarkScore | None
    cost: RunCost | None

    @property
    def last_hard_share(self) -> float | None:
        return self.hard_shares[-1] if self.hard_shares else None

    @property
    def hard_text(self) -> str:
        return "Hard share by iteration: " + ", ".join(f"{share:.0%}" for share in self.hard_shares)


@require_GET
def experiment(request: HttpRequest, experiment_id: int) -> HttpResponse:
    found = get_object_or_404(Experiment.objects.select_related("owner"), pk=experiment_id)
    runs = querysets.runs_with_state().filter(experiment=found).select_related("owner", "seed_pool").order_by("-id")
    page = page_of(request, runs)
    return render(request, "experiment.html", {"experiment": found, "page": page, "rows": run_rows(list(page.object_list))})


def run_rows(runs: Sequence[Any]) -> list[RunRow]:
    """Runs with their hard share, last score and cost, in as many queries for all of them as for one."""
    counts = querysets.verdict_counts(runs)
    last: dict[int, BenchmarkScore] = {score.iteration.run_id: score for score in querysets.macro_scores(runs)}
    costs = querysets_calls.costs_of(runs)
    return [RunRow(run, _hard_shares(counts.get(run.pk, {})), last.get(run.pk), costs.get(run.pk)) for run in runs]


def _hard_shares(by_iteration: dict[int, dict[str, int]]) -> list[float]:
    """Of each iteration that scored any."""
    return [share for counts in by_iteration.values() if (share := charts.hard_share(counts)) is not None]


@requires("member")
@require_http_methods(["GET", "POST"])
def experiment_new(request: HttpRequest) -> HttpResponse:
    form = ExperimentForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.instance.owner = signed_in(request)
        try:
            return redirect("experiment", form.save().pk)
        except IntegrityError:  # somebody took the name in the meantime
            form.add_error("name", "There is an experiment of this name.")
    return render(request, "experiment_new.html", {"form": form}, status=422 if form.errors else 200)
