"""Rows become Plotly figures, as plain data for `json_script`.

A figure names its colours by words of the loop (`meta.token`; of a line across it, its name); static/js/charts.js gives each its value
from tokens.css, so that a chart follows the theme. Labels that a person or a model wrote are escaped: Plotly renders some HTML in them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import plotly.graph_objects as go
from django.urls import reverse

from experiments.board import Board
from experiments.imitation_board import ImitationView
from experiments.models import BenchmarkScore, Run
from experiments.querysets_curves import MOST_POINTS, SMOOTHED_OVER, LoggedStep, forgetting

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
    note: str = ""
    """What a reader of the lines should know of them."""

    @property
    def data_id(self) -> str:
        return f"{self.id}-data"


def pool_chart(board: Board) -> Chart:
    """Hard, easy and quarantined of each iteration, stacked; a click opens the instructions."""
    url = reverse("run_instructions", args=[board.run.pk])
    iterations = board.judged
    numbers = [i.number for i in iterations]
    figure = start_figure(x_title="Iteration", y_title="Instructions judged", barmode="stack")
    for label in ("hard", "easy", "quarantined"):
        counts = [getattr(i.row, label) for i in iterations]
        links = [f"{url}?iteration={n}&verdict={label}" for n in numbers]
        pattern = {"shape": "/", "size": 5, "solidity": 0.4} if label == "quarantined" else None
        figure.add_bar(x=numbers, y=counts, name=label, customdata=links, meta={"token": label}, marker={"pattern": pattern}, width=0.5)
    whole_numbers(figure, [i.number for i in board.iterations[1:]])
    last = iterations[-1].row if iterations else None
    summary = f"In the last judged iteration {last.hard} hard, {last.easy} easy, {last.quarantined} quarantined." if last else ""
    return Chart(id="pool-chart", title="What the referee found", summary=summary, figure=plain(figure))


def loss_chart(board: Board) -> Chart:
    """The loss over all steps so far, iteration after iteration."""
    figure = start_figure(x_title="Step", y_title="Loss on responses")
    metrics, offset = board.metrics, 0
    every = _every(metrics[0].run_logs if metrics else 0)
    for imitation in reversed(board.imitations):
        number, steps = imitation.number, imitation.metrics
        if not steps:
            continue
        drawn = _thinned(steps, every)
        x, y = [offset + metric.step for metric in drawn], [_short(metric.loss) for metric in drawn]
        figure.add_scatter(x=x, y=y, name=f"iteration {number}", mode="lines", meta={"token": "student"}, showlegend=False)
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
        offset += steps[-1].step  # not those planned: a save may have become the checkpoint before the last
    figure.update_layout(margin={"t": 24})
    summary = f"The loss went from {metrics[0].loss:.2f} to {metrics[-1].loss:.2f}." if metrics else ""
    return Chart(id="loss-chart", title="Loss", summary=summary, figure=plain(figure), note=_thinning_note(every))


CURVES = (
    ("loss", "Loss on responses", True),
    ("learning_rate", "Learning rate", False),
    ("grad_norm", "Gradient norm", True),
    ("tokens_per_s", "Response tokens / s", True),
)
"""What is drawn of an imitation: the field of LoggedStep, its name, and whether it is smoothed."""


def imitation_charts(imitation: ImitationView) -> list[Chart]:
    """The curves of one imitation over its steps."""
    return [_curve(imitation, field, title, smooth=smooth) for field, title, smooth in CURVES]


def _curve(imitation: ImitationView, field: str, title: str, *, smooth: bool) -> Chart:
    """One value over the steps; smoothed, the line itself stands faint behind."""
    logged = [(metric.step, value) for metric in imitation.metrics if (value := getattr(metric, field)) is not None]
    logs = imitation.metrics[0].logs if logged else 0
    every, over = _every(logs), min(SMOOTHED_OVER, logs // 10) if smooth else 0
    figure = start_figure(x_title="Step", y_title="", height=190, margin={"l": 44, "r": 8, "t": 6, "b": 34}, showlegend=False)
    figure.update_yaxes(exponentformat="e")
    drawn = _thinned(imitation.metrics, every)
    lines = [(title, [getattr(metric, field) for metric in drawn], 1.0)]
    if over > 1:
        lines = [("each log", lines[0][1], 0.3), ("smoothed", _smoothed(drawn, field, over=over), 1.0)]
    for name, values, opacity in lines:
        points = [(metric.step, value) for metric, value in zip(drawn, values, strict=True) if getattr(metric, field) is not None]
        x, y = [step for step, _ in points], [_short(value) for _, value in points]
        mode = "lines" if len(points) > 1 else "markers"
        figure.add_scatter(x=x, y=y, name=name, mode=mode, opacity=opacity, meta={"token": "student"})
    notes = [f"smoothed over {over} logs, each log faint" if over > 1 else "", _thinning_note(every)]
    summary = f"{title}: from {logged[0][1]:.4g} to {logged[-1][1]:.4g}." if logged else ""
    id = f"{field.replace('_', '-')}-{imitation.number}"
    return Chart(id=id, title=title, summary=summary, figure=plain(figure), note="; ".join(filter(None, notes)))


def _smoothed(drawn: Sequence[LoggedStep], field: str, *, over: int) -> list[float]:
    """The smoothed value at each drawn step, of all that were logged up to it."""
    parts = [(metric.place, getattr(metric, f"{field}_sum"), getattr(metric, f"{field}_weight")) for metric in drawn]
    return ema([(place, total or 0.0, weight or 0.0) for place, total, weight in parts], over=over)


def ema(parts: Sequence[tuple[int, float, float]], *, over: int) -> list[float]:
    """The exponential moving average of a line at some of its places, without the pull of its start: weights count from the first on.

    parts: a place, the sum of the values since the place before, each with its weight at this place, and the sum of their weights.
    """
    keep, last, total, weight, averages = forgetting(over), 0, 0.0, 0.0, []
    for place, part, part_weight in parts:
        kept = keep ** (place - last)
        last, total, weight = place, total * kept + part, weight * kept + part_weight
        averages.append(total / weight if weight else 0.0)
    return averages


def _every(logs: int) -> int:
    return max(1, ceil(logs / MOST_POINTS))


def _thinned(metrics: Sequence[LoggedStep], every: int) -> Sequence[LoggedStep]:
    """Each so many of the logged steps, and always the last."""
    return [metric for metric in metrics if metric.place % every == 0 or metric.place == metric.logs - 1]


def _short(value: float) -> float:
    """A value with as many digits as a chart can show."""
    return float(f"{value:.5g}")


def _thinning_note(every: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(every % 10 if every % 100 not in (11, 12, 13) else 0, "th")
    return f"every {every}{ending} log drawn" if every > 1 else ""


def score_chart(board: Board) -> Chart:
    """The macro score of each benchmark after each iteration, with its 95 % interval."""
    figure = start_figure(x_title="Iteration", y_title="Macro score, %")
    scores = board.scores
    for i, (name, rows) in enumerate(_by_benchmark(scores).items()):
        _add_scores(figure, rows, name=name, token="student" if i == 0 else f"run-{i % RUN_COLOURS + 1}")
    figure.update_yaxes(range=[0, 102])
    figure.update_layout(showlegend=len(_by_benchmark(scores)) > 1)
    whole_numbers(figure, [i.number for i in board.iterations])
    summary = "; ".join(f"{s.benchmark} after iteration {s.iteration.number}: {100 * s.value:.1f} %" for s in scores)
    return Chart(id="score-chart", title="Benchmark scores", summary=summary, figure=plain(figure))


def overlay_chart(id: str, title: str, y_title: str, runs: Sequence[Run], values: Mapping[int, Mapping[int, float]]) -> Chart:
    """One value of each iteration (run id -> iteration number -> value), a line a run."""
    figure = start_figure(x_title="Iteration", y_title=y_title)
    for i, run in enumerate(runs):
        points = sorted(values.get(run.pk, {}).items())
        x, y = [number for number, _ in points], [value for _, value in points]
        figure.add_scatter(x=x, y=y, name=escape_label(run.name), mode="lines+markers", meta={"token": run_token(i)})
    whole_numbers(figure, sorted({number for points in values.values() for number in points}))
    return Chart(id=id, title=title, summary=f"{title} of {', '.join(run.name for run in runs)}.", figure=plain(figure))


def overlay_scores(benchmark: str, runs: Sequence[Run], scores: Sequence[BenchmarkScore]) -> Chart:
    """The macro score of one benchmark, a line a run, with 95 % intervals."""
    figure = start_figure(x_title="Iteration", y_title="Macro score, %")
    for i, run in enumerate(runs):
        rows = [score for score in scores if score.benchmark == benchmark and score.iteration.run_id == run.pk]
        _add_scores(figure, rows, name=run.name, token=run_token(i))
    figure.update_yaxes(range=[0, 102])
    whole_numbers(figure, sorted({score.iteration.number for score in scores}))
    summary = f"Scores of {', '.join(run.name for run in runs)}."
    return Chart(id=f"scores-{benchmark}", title=f"Scores on {benchmark.replace('_', ' ')}", summary=summary, figure=plain(figure))


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


def start_figure(*, x_title: str, y_title: str, **layout: Any) -> go.Figure:
    """A figure with two axes in the look that all share."""
    figure = go.Figure(layout={"template": TEMPLATE, **layout})
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def whole_numbers(figure: go.Figure, numbers: Sequence[int]) -> None:
    """Iterations are whole: no ticks between them."""
    if len(numbers) <= 12:
        figure.update_xaxes(tickmode="array", tickvals=list(numbers))
    figure.update_xaxes(range=[min(numbers) - 0.5, max(numbers) + 0.5] if numbers else None)


def plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as data for `json_script`."""
    plain: dict[str, Any] = figure.to_plotly_json()
    plain["layout"]["template"] = TEMPLATE.to_plotly_json()
    return {"data": [dict(trace) for trace in plain["data"]], "layout": plain["layout"]}


def _by_benchmark(scores: Sequence[BenchmarkScore]) -> dict[str, list[BenchmarkScore]]:
    result: dict[str, list[BenchmarkScore]] = {}
    for score in scores:
        result.setdefault(score.benchmark, []).append(score)
    return result
