"""Two or more runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from experiments import charts, querysets
from experiments.config_table import config_rows
from experiments.models import BenchmarkScore
from trainer.records import Label

MOST_RUNS = 20


@dataclass(frozen=True)
class ComparedRun:
    """A run's last numbers, in its colour."""

    run: Any
    token: str
    iteration: int | None
    labels: Mapping[str, int]
    discrepancy: float | None
    scores: Sequence[BenchmarkScore | None]
    gain: float | None

    @property
    def hard_share(self) -> float | None:
        return charts.hard_share(self.labels)


@require_GET
def compare(request: HttpRequest) -> HttpResponse:
    ids = asked_runs(request)
    runs = _runs(ids[:MOST_RUNS])
    context: dict[str, Any] = {"runs": runs, "too_many": len(ids) > MOST_RUNS, "most": MOST_RUNS, "show_all": "all" in request.GET}
    if len(runs) >= 2:
        context.update(_comparison(runs))
    return render(request, "compare.html", context, status=200 if len(runs) >= 2 else 422)


def asked_runs(request: HttpRequest) -> list[int]:
    """The run ids of ?runs=1,2,3 (or runs=1&runs=2, as checkboxes send them), each once, in their order."""
    parts = [part.strip() for text in request.GET.getlist("runs") for part in text.split(",")]
    return list(dict.fromkeys(int(part) for part in parts if part.isdecimal() and len(part) < 19))


def _runs(ids: Sequence[int]) -> list[Any]:
    found = querysets.runs_with_state().select_related("experiment", "owner").in_bulk(ids)
    unknown = [str(run_id) for run_id in ids if run_id not in found]
    if unknown:
        raise Http404(f"There is no run with the number {', '.join(unknown)}.")
    return [found[run_id] for run_id in ids]


def _comparison(runs: Sequence[Any]) -> dict[str, Any]:
    counts = querysets.verdict_counts(runs)
    means = querysets.mean_discrepancies(runs)
    scores = list(querysets.macro_scores(runs))
    benchmarks = sorted({score.benchmark for score in scores})
    shares = {
        run: {number: 100 * share for number, labels in by_number.items() if (share := charts.hard_share(labels)) is not None}
        for run, by_number in counts.items()
    }
    settings = config_rows([run.config for run in runs])
    return {
        "settings": settings,
        "differing": any(row.differs for row in settings),
        "compared": [_compared(i, run, counts, means, scores, benchmarks) for i, run in enumerate(runs)],
        "benchmarks": benchmarks,
        "charts": [
            *(charts.overlay_scores(name, runs, scores) for name in benchmarks),
            charts.overlay_chart("hard-share", "Hard share", "Hard of hard and easy, %", runs, shares),
            charts.overlay_chart("discrepancy", "Mean discrepancy", "Teacher minus student, points", runs, means),
        ],
    }


def _compared(
    place: int,
    run: Any,
    counts: dict[int, dict[int, dict[str, int]]],
    means: dict[int, dict[int, float]],
    scores: Sequence[BenchmarkScore],
    benchmarks: Sequence[str],
) -> ComparedRun:
    by_number = counts.get(run.pk, {})
    last = max(by_number, default=None)
    counted = by_number[last] if last is not None else {}
    own = [score for score in scores if score.iteration.run_id == run.pk]
    finals = [next((score for score in reversed(own) if score.benchmark == name), None) for name in benchmarks]
    first = next((score for score in own if score.benchmark == benchmarks[0] and score.iteration.number == 0), None) if benchmarks else None
    final = finals[0] if finals else None
    return ComparedRun(
        run=run,
        token=charts.run_token(place),
        iteration=last,
        labels={label: counted[label] for label in Label if label in counted},
        discrepancy=means.get(run.pk, {}).get(last) if last is not None else None,
        scores=finals,
        gain=100 * (final.value - first.value) if first and final else None,
    )
