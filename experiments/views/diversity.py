"""How varied a run's instructions are."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from experiments import diversity_charts, querysets_diversity
from experiments.diversity_board import IterationDiversity, read_diversity
from experiments.models import Run
from experiments.views.runs import get_run, unreadable
from trainer.errors import ConfigError


@require_GET
def run_diversity(request: HttpRequest, run_id: int) -> HttpResponse:
    """Each iteration in numbers beside the seeds, and one iteration drawn (`iteration`; else the last that made something)."""
    found = get_run(run_id)
    try:
        iterations = read_diversity(found)
    except ConfigError as error:
        return unreadable(request, found, error)
    asked = request.GET.get("iteration", "")
    later = [one for one in iterations if one.number]
    shown = next((one for one in later if str(one.number) == asked), later[-1] if later else None)
    context = {"run": found, "iterations": iterations, "later": later, "shown": shown, "charts": _charts(found, shown)}
    return render(request, "diversity.html", context)


def _charts(run: Run, shown: IterationDiversity | None) -> list[Any]:
    number = shown.number if shown else 0
    words = querysets_diversity.words_of(run, {0, number})
    length = diversity_charts.length_chart(number, words.get(number, Counter()), words.get(0, Counter()))
    if not number:
        return [length] if words else []
    counts = querysets_diversity.root_words(run, number)
    pictures = (
        ("cache_pool", f"Cache pool of iteration {number}", {"made_to": number - 1}),
        ("hard", "Hard in it", {"iteration": number, "verdict": "hard"}),
        ("new_hard", "Made from hard parents", {"made": number, "origin": "hard"}),
    )
    return [
        *(diversity_charts.sunburst(run, name.replace("_", "-"), title, counts[name], filters) for name, title, filters in pictures),
        length,
    ]
