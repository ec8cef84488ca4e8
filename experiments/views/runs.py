"""The run page, what it refreshes while the run is live, and stop and resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET
from django.views.decorators.vary import vary_on_headers

from experiments import charts, querysets, querysets_calls
from experiments.board import STAGE_ORDER, Board, read_board
from experiments.budget_form import BudgetForm, in_dollars, whole_cents
from experiments.config_table import config_rows
from experiments.ledger import Costs, read_costs
from experiments.models import BenchmarkAnswer, BenchmarkScore, Budget, Iteration, Run
from experiments.roles import requires
from experiments.services import jobs
from experiments.services.budgets import budgets_in_the_way
from experiments.states import RunState
from experiments.views.methods import post_from
from experiments.views.paging import page_of
from trainer.errors import ConfigError


def get_run(run_id: int) -> Any:
    """A run with its derived state, or 404."""
    return get_object_or_404(querysets.runs_with_state().select_related("experiment", "owner", "seed_pool"), pk=run_id)


@require_GET
def run(request: HttpRequest, run_id: int) -> HttpResponse:
    found = get_run(run_id)
    try:
        context = {**_board_context(read_board(found)), "settings": config_rows([found.config])}
    except ConfigError as error:
        return unreadable(request, found, error)
    return render(request, "run.html", context)


@require_GET
def run_live(request: HttpRequest, run_id: int) -> HttpResponse:
    """The part of the run page that changes; once the run is final it asks no more."""
    found = get_run(run_id)
    try:
        context = _board_context(read_board(found))
    except ConfigError as error:
        return unreadable(request, found, error)
    return render(request, "_run_live.html", context)


def unreadable(request: HttpRequest, found: Run, error: ConfigError) -> HttpResponse:
    """A run whose config this version cannot read: what is wrong with it, and its ledger and instructions behind the tabs."""
    return render(request, "run_unreadable.html", {"run": found, "problem": str(error)}, status=422)


def _board_context(board: Board) -> dict[str, Any]:
    costs = read_costs(board)
    return {
        "run": board.run,
        "board": board,
        "costs": costs,
        "budget_form": _budget_form(costs),
        "stages": STAGE_ORDER,
        "charts": [
            charts.pool_chart(board),
            charts.score_chart(board),
            charts.loss_chart(board),
        ],
        **_newest_imitation(board),
        "can_stop": board.run.state in (RunState.QUEUED, RunState.RUNNING),
        "can_resume": _can_resume(board, costs),
    }


def _newest_imitation(board: Board) -> dict[str, Any]:
    """The imitation that the run page shows in full; the older ones are asked for one at a time."""
    newest = board.imitations[0] if board.imitations else None
    return {"imitation": newest, "imitation_charts": charts.imitation_charts(newest) if newest else []}


@require_GET
@vary_on_headers("HX-Request")
def run_imitation(request: HttpRequest, run_id: int, number: int) -> HttpResponse:
    """One iteration's imitation: a page, or what the run page unfolds."""
    found = get_run(run_id)
    try:
        board = read_board(found)
    except ConfigError as error:
        return unreadable(request, found, error)
    imitation = next((imitation for imitation in board.imitations if imitation.number == number), None)
    if imitation is None:
        raise Http404(f"Nothing is known of an imitation in iteration {number}.")
    context = {"run": found, "imitation": imitation, "imitation_charts": charts.imitation_charts(imitation)}
    return render(request, "_imitation.html" if request.headers.get("HX-Request") else "imitation.html", context)


def _can_resume(board: Board, costs: Costs) -> bool:
    """A failure can be tried again; what stopped at a budget that is still in the way would only stop at it again."""
    if any(stop.budgets for stop in costs.stopped):
        return bool(board.failures)
    return board.waiting or bool(board.failures)


def _budget_form(costs: Costs) -> BudgetForm:
    """The form of the run's budget; where the run stopped at it, with what the forecast needs."""
    form = BudgetForm(budget=costs.budget)
    needed = {name: meter.needed for name, meter in costs.meters.items() if costs.stopped}
    if "calls" in needed:
        form.initial["most_calls"] = needed["calls"]
    if "dollars" in needed:
        form.initial["most_dollars"] = in_dollars(whole_cents(needed["dollars"]))
    return form


@post_from("run")
@requires("member")
def run_stop(request: HttpRequest, run_id: int) -> HttpResponse:
    jobs.stop_run(get_object_or_404(Run, pk=run_id))
    messages.info(request, "Stopping: what is done is kept, a tuning saves its step first, and the run can be resumed.")
    return redirect("run", run_id)


@post_from("run")
@requires("member")
def run_resume(request: HttpRequest, run_id: int) -> HttpResponse:
    """Go on with a run, unless all that it waits for is a larger budget."""
    found = get_run(run_id)
    in_the_way = _budgets_in_the_way(found)
    if in_the_way and found.state != RunState.FAILED:
        owners = " and ".join(f"run {budget.run}" if budget.run else f"endpoint {budget.endpoint}" for budget in in_the_way)
        messages.warning(request, f"The budget of {owners} has no room for the next call: the run goes on once that is raised.")
        return redirect("run", run_id)
    return _go_on(request, found, jobs.resume_run, "The run goes on where it was.")


@post_from("run")
@requires("member")
def run_use_save(request: HttpRequest, run_id: int) -> HttpResponse:
    """Take the last save of a stopped or failed tuning as the checkpoint, and go on with what comes next."""
    return _go_on(request, get_run(run_id), jobs.use_save, "The last save becomes the checkpoint, and the run goes on with the next step.")


def _go_on(request: HttpRequest, found: Run, how: Callable[[Run], list[str]], said: str) -> HttpResponse:
    try:
        out_of_batch = how(found)
    except ConfigError as error:
        messages.error(request, str(error))
        return redirect("run", found.pk)
    messages.success(request, said)
    if out_of_batch:
        messages.info(request, f"No longer in batch mode, since the endpoint offers no Batch API: {', '.join(out_of_batch)}.")
    return redirect("run", found.pk)


def _budgets_in_the_way(run: Run) -> list[Budget]:
    """The budgets that the run's steps stopped at and that are as full as they were then."""
    stopped = querysets_calls.over_budget_jobs().filter(stage__iteration__run=run)
    return list(dict.fromkeys(budget for job in stopped for budget in budgets_in_the_way(job)))


@require_GET
def run_scores(request: HttpRequest, run_id: int, benchmark: str, number: int) -> HttpResponse:
    """One benchmark after one iteration: the score of each task, and each item with what was answered."""
    found = get_run(run_id)
    iteration = get_object_or_404(Iteration, run=found, number=number)
    scores = list(BenchmarkScore.objects.filter(iteration=iteration, benchmark=benchmark))
    answers = BenchmarkAnswer.objects.filter(iteration=iteration, benchmark=benchmark)
    if not scores and not answers.exists():
        raise Http404(f"{benchmark} was not run after iteration {number}.")
    task, outcome = request.GET.get("task", ""), request.GET.get("outcome", "")
    if task:
        answers = answers.filter(task=task)
    if outcome in OUTCOMES:
        answers = answers.filter(correct=OUTCOMES[outcome])
    context = {
        "run": found,
        "number": number,
        "benchmark": benchmark,
        "macro": next((score for score in scores if not score.task), None),
        "tasks": [score for score in scores if score.task],
        "others": _other_iterations(found, benchmark),
        "page": page_of(request, answers),
        "task": task,
        "outcome": outcome,
        "outcomes": OUTCOMES,
    }
    return render(request, "run_scores.html", context)


OUTCOMES = {"right": True, "wrong": False, "unreadable": None}


def _other_iterations(run: Run, benchmark: str) -> list[BenchmarkScore]:
    return [score for score in querysets.macro_scores([run]) if score.benchmark == benchmark]
