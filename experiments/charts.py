"""Rows become Plotly figures, as plain data for `json_script`.

A figure names its colours by words of the loop (`meta.token`); static/js/charts.js gives each its value from tokens.css, so
that a chart follows the theme. Labels that a person or a model wrote are escaped: Plotly renders some HTML in them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from django.urls import reverse

from experiments.board import Board
from experiments.models import BenchmarkScore, Metric, Run

RUN_COLOURS = 8
"""tokens.css has so many colours for runs laid over each other."""

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Inter, system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "height": 300,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "hovermode": "x unified",
        "xaxis": {"showgrid": False, "zeroline": False, "ticks": "", "title": {"standoff": 8, "font": {"size": 12}}, "fixedrange": True},
        "yaxis": {
            "zeroline": False,
            "ticks": "",
            "rangemode": "tozero",
            "title": {"standoff": 8, "font": {"size": 12}},
            "fixedrange": True,
        },
        "bargap": 0.45,
    }
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with its name on the page and what it says in words."""

    id: str
    title: str
    summary: str
    figure: dict[str, Any]

    @property
    def data_id(self) -> str:
        return f"{self.id}-data"


def pool_chart(board: Board) -> Chart:
    """Hard, easy and quarantined of each iteration, stacked; a click opens the instructions."""
    url = reverse("run_instructions", args=[board.run.pk])
    iterations = board.judged
    numbers = [i.number for i in iterations]
    figure = _figure(x_title="Iteration", y_title="Instructions judged", barmode="stack")
    for label in ("hard", "easy", "quarantined"):
        counts = [getattr(i.row, label) for i in iterations]
        links = [f"{url}?iteration={n}&verdict={label}" for n in numbers]
        pattern = {"shape": "/", "size": 5, "solidity": 0.4} if label == "quarantined" else None
        figure.add_bar(x=numbers, y=counts, name=label, customdata=links, meta={"token": label}, marker={"pattern": pattern}, width=0.5)
    _whole_numbers(figure, [i.number for i in board.iterations[1:]])
    last = iterations[-1].row if iterations else None
    summary = f"In the last judged iteration {last.hard} hard, {last.easy} easy, {last.quarantined} quarantined." if last else ""
    return Chart(id="pool-chart", title="What the referee found", summary=summary, figure=_plain(figure))


def loss_chart(metrics: Sequence[Metric]) -> Chart:
    """The loss over all steps so far, iteration after iteration."""
    figure = _figure(x_title="Step", y_title="Loss on responses")
    offset = 0
    for number, steps in _by_iteration(metrics).items():
        x = [offset + metric.step for metric in steps]
        figure.add_scatter(
            x=x, y=[metric.loss for metric in steps], name=f"iteration {number}", mode="lines", meta={"token": "student"}, showlegend=False
        )
        if offset:
            figure.add_vline(x=offset, line_width=1, line_dash="dot")
        figure.add_annotation(
            x=offset,
            y=1,
            yref="paper",
            text=str(number) if offset else f"iteration {number}",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
        offset += steps[-1].steps
    figure.update_layout(margin={"t": 24})
    summary = f"The loss went from {metrics[0].loss:.2f} to {metrics[-1].loss:.2f}." if metrics else ""
    return Chart(id="loss-chart", title="Loss", summary=summary, figure=_plain(figure))


def score_chart(board: Board) -> Chart:
    """The macro score of each benchmark after each iteration, with its 95 % interval."""
    figure = _figure(x_title="Iteration", y_title="Macro score, %")
    scores = board.scores
    for i, (name, rows) in enumerate(_by_benchmark(scores).items()):
        _add_scores(figure, rows, name=name, token="student" if i == 0 else f"run-{i % RUN_COLOURS + 1}")
    figure.update_yaxes(range=[0, 102])
    figure.update_layout(showlegend=len(_by_benchmark(scores)) > 1)
    _whole_numbers(figure, [i.number for i in board.iterations])
    summary = "; ".join(f"{s.benchmark} after iteration {s.iteration.number}: {100 * s.value:.1f} %" for s in scores)
    return Chart(id="score-chart", title="Benchmark scores", summary=summary, figure=_plain(figure))


def overlay_chart(id: str, title: str, y_title: str, runs: Sequence[Run], values: Mapping[int, Mapping[int, float]]) -> Chart:
    """One value of each iteration (run id -> iteration number -> value), a line a run."""
    figure = _figure(x_title="Iteration", y_title=y_title)
    for i, run in enumerate(runs):
        points = sorted(values.get(run.pk, {}).items())
        x, y = [number for number, _ in points], [value for _, value in points]
        figure.add_scatter(x=x, y=y, name=escape_label(run.name), mode="lines+markers", meta={"token": run_token(i)})
    _whole_numbers(figure, sorted({number for points in values.values() for number in points}))
    return Chart(id=id, title=title, summary=f"{title} of {', '.join(run.name for run in runs)}.", figure=_plain(figure))


def overlay_scores(benchmark: str, runs: Sequence[Run], scores: Sequence[BenchmarkScore]) -> Chart:
    """The macro score of one benchmark, a line a run, with 95 % intervals."""
    figure = _figure(x_title="Iteration", y_title="Macro score, %")
    for i, run in enumerate(runs):
        rows = [score for score in scores if score.benchmark == benchmark and score.iteration.run_id == run.pk]
        _add_scores(figure, rows, name=run.name, token=run_token(i))
    figure.update_yaxes(range=[0, 102])
    _whole_numbers(figure, sorted({score.iteration.number for score in scores}))
    summary = f"Scores of {', '.join(run.name for run in runs)}."
    return Chart(id=f"scores-{benchmark}", title=f"Scores on {benchmark.replace('_', ' ')}", summary=summary, figure=_plain(figure))


def hard_share(labels: Mapping[str, int]) -> float | None:
    """Hard of hard and easy, 0 to 1. The quarantined were not scored: in the denominator they would count as easy."""
    hard, easy = labels.get("hard", 0), labels.get("easy", 0)
    return hard / (hard + easy) if hard + easy else None


def run_token(position: int) -> str:
    """The colour of a run by its place among those compared."""
    return f"run-{position % RUN_COLOURS + 1}"


def escape_label(text: str) -> str:
    """Text as Plotly shows it letter for letter."""
    return html.escape(text, quote=False)


def _add_scores(figure: go.Figure, rows: Sequence[BenchmarkScore], *, name: str, token: str) -> None:
    figure.add_scatter(
        x=[row.iteration.number for row in rows],
        y=[100 * row.value for row in rows],
        error_y={"type": "data", "array": [196 * row.standard_error for row in rows], "thickness": 1.2, "width": 3},
        name=escape_label(name),
        mode="lines+markers",
        hovertemplate="%{y:.1f} %",
        meta={"token": token},
    )


def _figure(*, x_title: str, y_title: str, **layout: Any) -> go.Figure:
    figure = go.Figure(layout={"template": TEMPLATE, **layout})
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def _whole_numbers(figure: go.Figure, numbers: Sequence[int]) -> None:
    """Iterations are whole: no ticks between them."""
    if len(numbers) <= 12:
        figure.update_xaxes(tickmode="array", tickvals=list(numbers))
    figure.update_xaxes(range=[min(numbers) - 0.5, max(numbers) + 0.5] if numbers else None)


def _plain(figure: go.Figure) -> dict[str, Any]:
    plain: dict[str, Any] = figure.to_plotly_json()
    plain["layout"]["template"] = TEMPLATE.to_plotly_json()
    return {"data": [dict(trace) for trace in plain["data"]], "layout": plain["layout"]}


def _by_iteration(metrics: Sequence[Metric]) -> dict[int, list[Metric]]:
    result: dict[int, list[Metric]] = {}
    for metric in metrics:
        result.setdefault(metric.iteration.number, []).append(metric)
    return result


def _by_benchmark(scores: Sequence[BenchmarkScore]) -> dict[str, list[BenchmarkScore]]:
    result: dict[str, list[BenchmarkScore]] = {}
    for score in scores:
        result.setdefault(score.benchmark, []).append(score)
    return result
