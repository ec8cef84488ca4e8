"""A run's pool flow and trajectories."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from experiments import flow_charts, querysets_flow
from experiments.flow import problems, read_flow
from experiments.trajectories import KINDS, read_trajectories
from experiments.views.runs import get_run, unreadable
from trainer.errors import ConfigError


@require_GET
def run_flow(request: HttpRequest, run_id: int) -> HttpResponse:
    """How instructions went through the iterations: counts that add up, and one iteration drawn (`iteration`; else the last)."""
    found = get_run(run_id)
    try:
        flow = read_flow(found)
    except ConfigError as error:
        return unreadable(request, found, error)
    shown, moved = flow.iteration(request.GET.get("iteration", "")), read_trajectories(found)
    context = {
        "run": found,
        "flow": flow,
        "problems": problems(flow),
        "shown": shown,
        "chart": flow_charts.flow_chart(shown) if shown else None,
        "held_against": querysets_flow.held_against(found, shown.number) if shown else None,
        "moved": moved,
        "kinds": [kind.replace("_", " ") for kind in KINDS],
        "charts": [flow_charts.trajectory_chart(moved), flow_charts.discrepancy_chart(moved)] if moved else [],
    }
    return render(request, "flow.html", context)
