"""The referee of a run: how far to trust it, another tau, and what it could not score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from experiments.models import Iteration, Response, Role, Run, Verdict
from experiments.referee_board import judged_iterations, read_referee
from experiments.referee_charts import discrepancy_distribution, score_distribution
from experiments.roles import requires
from experiments.services.jobs import judge_again
from experiments.services.quarantine import leave_out, score_by_hand
from experiments.services.thresholds import HIGH, LOW, set_tau
from experiments.views.methods import post_from
from experiments.views.paging import page_of
from experiments.views.people import signed_in
from experiments.views.runs import get_run, unreadable
from trainer.errors import ConfigError
from trainer.records import Label

PAGE = 20
SHOWN_CHARACTERS = 600
"""So much of each response stands in the list; the instruction's page has all of it."""


class TauForm(forms.Form):
    tau = forms.FloatField(min_value=LOW, max_value=HIGH, error_messages={"invalid": f"Tau is a number from {LOW:g} to {HIGH:g}."})


class ScoresForm(forms.Form):
    """Two scores by hand."""

    teacher = forms.FloatField(min_value=1, max_value=10)
    student = forms.FloatField(min_value=1, max_value=10)


@require_GET
def run_referee(request: HttpRequest, run_id: int) -> HttpResponse:
    """One iteration's judgements (`iteration`; else the last judged), split by its own tau or another (`tau`)."""
    found = get_run(run_id)
    iterations = judged_iterations(found)
    asked = request.GET.get("iteration", "")
    shown = next((one for one in iterations if str(one.number) == asked), iterations[-1] if iterations else None)
    context: dict[str, Any] = {"run": found, "iterations": iterations, "shown": shown}
    if shown is not None:
        try:
            board = read_referee(found, shown)
        except ConfigError as error:
            return unreadable(request, found, error)
        form = TauForm(request.GET if "tau" in request.GET else {"tau": board.tau})
        tau = form.cleaned_data["tau"] if form.is_valid() else board.tau
        page = page_of(request, _quarantined(shown), size=PAGE)
        context |= {
            "board": board,
            "form": form,
            "split": board.split(tau),
            "now": board.split(board.tau),
            "charts": [score_distribution(board), discrepancy_distribution(board)],
            "page": page,
            "rows": _with_responses(list(page), shown),
            "thresholds": found.thresholds.select_related("set_by"),
        }
    return render(request, "referee.html", context)


def _quarantined(iteration: Iteration) -> Any:
    """What is quarantined or was scored by hand, the waiting ones first."""
    rows = Verdict.objects.filter(iteration=iteration)
    ruled = rows.filter(label=Label.QUARANTINED) | rows.filter(by_hand=True)
    return ruled.select_related("instruction", "ruled_by").order_by("by_hand", "left_out", "pk")


def _with_responses(verdicts: list[Verdict], iteration: Iteration) -> list[tuple[Verdict, str, str]]:
    """Each with the openings of the teacher's and the student's response."""
    ids = [verdict.instruction_id for verdict in verdicts]
    teacher = _texts(Response.objects.filter(instruction__in=ids, role=Role.TEACHER))
    student = _texts(Response.objects.filter(instruction__in=ids, role=Role.STUDENT, iteration=iteration))
    return [(verdict, teacher.get(verdict.instruction_id, ""), student.get(verdict.instruction_id, "")) for verdict in verdicts]


def _texts(rows: Any) -> Mapping[int, str]:
    return {row.instruction_id: (row.text or row.failure)[:SHOWN_CHARACTERS] for row in rows}


# Ruling


@post_from("run_referee")
@requires("member")
def run_tau(request: HttpRequest, run_id: int) -> HttpResponse:
    """Use another tau from the next iteration on."""
    run, form = get_object_or_404(Run, pk=run_id), TauForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
        return redirect("run_referee", run_id)
    try:
        threshold = set_tau(run, form.cleaned_data["tau"], by=signed_in(request))
    except ConfigError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"Tau is {threshold.tau:g} from iteration {threshold.iteration} on.")
    return redirect("run_referee", run_id)


@post_from("run_referee")
@requires("member")
def run_leave_out(request: HttpRequest, run_id: int) -> HttpResponse:
    """Leave out what is quarantined in an iteration: one verdict, or all."""
    iteration = get_object_or_404(Iteration, run=run_id, number=_number(request.POST.get("iteration", "")))
    one = request.POST.get("verdict")
    try:
        left = leave_out(iteration, by=signed_in(request), verdicts=None if one is None else [_number(one) or 0])
    except ConfigError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{left} left out: {'it stays' if left == 1 else 'they stay'} quarantined and will not be judged again.")
    return _back(iteration)


@post_from("run_referee")
@requires("member")
def run_judge_again(request: HttpRequest, run_id: int) -> HttpResponse:
    """Judge what is quarantined in an iteration once more."""
    iteration = get_object_or_404(Iteration, run=run_id, number=_number(request.POST.get("iteration", "")))
    try:
        judge_again(iteration)
    except ConfigError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, "They are judged once more. Then Resume on the run's page goes on with new instructions.")
    return _back(iteration)


@post_from("run_referee")
@requires("member")
def run_score_by_hand(request: HttpRequest, run_id: int) -> HttpResponse:
    verdict_id = _number(request.POST.get("verdict", ""))
    verdict = get_object_or_404(Verdict.objects.select_related("iteration"), pk=verdict_id, iteration__run=run_id)
    form = ScoresForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Give both scores, from 1 to 10.")
        return _back(verdict.iteration)
    try:
        ruled = score_by_hand(verdict, **form.cleaned_data, by=signed_in(request))
    except ConfigError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"Scored by hand: d is {ruled.discrepancy:g}, {ruled.label}.")
    return _back(verdict.iteration)


def _back(iteration: Iteration) -> HttpResponse:
    return redirect(reverse("run_referee", args=[iteration.run_id], query={"iteration": iteration.number}) + "#quarantine")


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None
