"""The distributions of an iteration's scores and of d. Colours are tokens, as in experiments/charts.py; a bar opens its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import floor
from typing import NamedTuple
from urllib.parse import urlencode

import plotly.graph_objects as go
from django.urls import reverse

from experiments.charts import Chart, plain, start_figure
from experiments.querysets_referee import BIN
from experiments.referee_board import RefereeBoard

HIGHEST = {"d": 9.0, "teacher": 10.0, "student": 10.0}
"""A bin that begins here holds this value alone."""


def score_distribution(board: RefereeBoard) -> Chart:
    """How many verdicts have which mean score of teacher and student, in bins of half a point."""
    figure = start_figure(x_title="Mean score", y_title="Verdicts", barmode="group", bargap=0.12)
    for role, bins in board.scores.items():
        figure.add_bar(
            x=[low + BIN / 2 for low in bins],
            y=list(bins.values()),
            name=role,
            customdata=[_rows(board, role, low, low + BIN) for low in bins],
            text=[_words(role, low, low + BIN) for low in bins],
            textposition="none",
            hovertemplate="%{text}: %{y:,}<extra></extra>",
            meta={"token": role},
        )
    figure.update_xaxes(range=[0.9, 10.6], tickmode="array", tickvals=list(range(1, 11)))
    figure.update_layout(hovermode="closest")
    _whole_counts(figure)
    most = {role: max(bins, key=bins.__getitem__) for role, bins in board.scores.items() if bins}
    said = " and ".join(_words(role, low, low + BIN) for role, low in most.items())
    summary = f"Of {board.scored:,} verdicts the most have {said}." if said else ""
    return Chart(id="scores-chart", title="Mean scores", summary=summary, figure=plain(figure))


class Bar(NamedTuple):
    """Verdicts with d from low, included, up to high, on one side of tau."""

    low: float
    high: float
    hard: bool
    n: int


def discrepancy_distribution(board: RefereeBoard) -> Chart:
    """How many verdicts have which d, in bins of half a point; the bin that tau lies in is two bars, one on the other."""
    figure = start_figure(x_title="d, teacher minus student, points", y_title="Verdicts", barmode="stack", bargap=0.08)
    bars = list(_bars(board))
    for label in ("easy", "hard"):
        side = [bar for bar in bars if bar.hard == (label == "hard")]
        figure.add_bar(
            x=[_bin(bar.low) + BIN / 2 for bar in side],
            y=[bar.n for bar in side],
            name=f"{label}: d {'from' if label == 'hard' else 'below'} {board.tau:g}",
            customdata=[_rows(board, "d", bar.low, bar.high) for bar in side],
            text=[_words("d", bar.low, bar.high) for bar in side],
            textposition="none",
            hovertemplate="%{text}: %{y:,}<extra></extra>",
            width=BIN * 0.92,
            meta={"token": label},
        )
    figure.add_vline(x=board.tau, line_width=2, line_dash="dot", name="ink")
    figure.add_annotation(x=board.tau, y=1, yref="paper", text=f"tau {board.tau:g}", showarrow=False, xanchor="left", yanchor="bottom")
    figure.update_layout(margin={"t": 48}, legend={"y": 1.1})
    ends = [board.tau, *(_bin(bar.low) for bar in bars)]
    figure.update_xaxes(range=[min(ends) - BIN, max(ends) + 2 * BIN])
    figure.update_layout(hovermode="closest")
    _whole_counts(figure)
    split = board.split(board.tau)
    said = f"{split.hard:,} verdicts have a d of at least tau, {board.tau:g}, and {split.easy:,} a smaller one."
    return Chart(id="d-chart", title="Discrepancy d", summary=said, figure=plain(figure))


def _whole_counts(figure: go.Figure) -> None:
    """Where a chart is low, no ticks between whole counts."""
    if max((n for trace in figure.data for n in trace.y), default=0) < 8:
        figure.update_yaxes(dtick=1)


def _bars(board: RefereeBoard) -> Iterator[Bar]:
    counts: Counter[tuple[float, bool]] = Counter()
    for d, n in board.discrepancies:
        counts[_bin(d), d >= board.tau] += n
    for (low, hard), n in sorted(counts.items()):
        yield Bar(max(low, board.tau) if hard else low, low + BIN if hard else min(low + BIN, max(board.tau, low)), hard, n)


def _bin(value: float) -> float:
    """The lower end of the bin that a value lies in."""
    return floor(value / BIN) * BIN


def _rows(board: RefereeBoard, name: str, low: float, high: float) -> str:
    """The address of the verdicts with a value from low up to high."""
    ends = {f"{name}_from": low, f"{name}_to": high}
    return f"{reverse('run_instructions', args=[board.iteration.run_id])}?{urlencode({'iteration': board.iteration.number, **ends})}"


def _words(name: str, low: float, high: float) -> str:
    return f"{name} {low:g}" if low >= HIGHEST[name] else f"{name} {low:g} to below {high:g}"
