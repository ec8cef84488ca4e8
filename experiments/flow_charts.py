"""The pool flow as a picture, the trajectories as bars and a curve. Colours are tokens, as in experiments/charts.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from experiments.charts import Chart, plain, start_figure, whole_numbers
from experiments.flow import ORIGINS, REASONS, IterationFlow
from experiments.trajectories import KINDS, Moved
from trainer.records import Fate

PICTURE_HEIGHT = 420


class Station(NamedTuple):
    """A place where instructions, or from the candidates on attempts, come to: what it is called, how many, their rows, its colour."""

    name: str
    words: str
    n: int
    url: str
    token: str


class Ribbon(NamedTuple):
    """So many go from one station to another; the address of their rows where a list can show just them."""

    source: str
    target: str
    n: int
    url: str = ""


def flow_chart(flow: IterationFlow) -> Chart:
    """One iteration as a picture: a ribbon as wide as the number that went along it."""
    stations = {station.name: station for station in _stations(flow)}
    ribbons = [ribbon for ribbon in _ribbons(flow) if ribbon.n]
    drawn = [name for name in stations if any(name in ribbon[:2] for ribbon in ribbons)]
    figure = go.Figure(
        layout={"height": PICTURE_HEIGHT, "margin": {"l": 4, "r": 4, "t": 12, "b": 12}, "paper_bgcolor": "rgba(0,0,0,0)", "font": _font()}
    )
    figure.add_sankey(
        arrangement="fixed",
        node=_nodes([stations[name] for name in drawn]),
        link=_links(ribbons, drawn, stations),
        meta={"nodes": [stations[name].token for name in drawn], "links": [stations[ribbon.target].token for ribbon in ribbons]},
    )
    summary = (
        f"Iteration {flow.number}: {flow.cache_pool} in the cache pool, {flow.answered} responded, {flow.judged} judged, "
        f"{flow.attempts} candidates, {flow.accepted} accepted, {flow.rejected} rejected."
    )
    return Chart(id="flow-chart", title=f"Iteration {flow.number}", summary=summary, figure=plain(figure))


def _font() -> dict[str, Any]:
    return {"family": "Inter, system-ui, sans-serif", "size": 12}


def _nodes(stations: Sequence[Station]) -> dict[str, Any]:
    return {
        # All that is accepted goes on to the pools: two names of one number would lie on each other.
        "label": ["" if station.name == "accepted" else f"{station.words} {station.n:,}" for station in stations],
        "customdata": [station.url for station in stations],
        "hovertemplate": "%{label}<extra></extra>",
        "align": "left",
        "pad": 22,
        "thickness": 14,
        "line": {"width": 0},
    }


def _links(ribbons: Sequence[Ribbon], drawn: Sequence[str], stations: dict[str, Station]) -> dict[str, Any]:
    return {
        "source": [drawn.index(ribbon.source) for ribbon in ribbons],
        "target": [drawn.index(ribbon.target) for ribbon in ribbons],
        "value": [ribbon.n for ribbon in ribbons],
        "customdata": [ribbon.url for ribbon in ribbons],
        "label": [f"{stations[r.source].words} \N{RIGHTWARDS ARROW} {stations[r.target].words}: {r.n:,}" for r in ribbons],
        "hovertemplate": "%{label}<extra></extra>",
    }


def _stations(flow: IterationFlow) -> Iterator[Station]:
    yield Station("seed", "seeds", flow.made["seed"], flow.of_cache_pool(origin="seed"), "ink-soft")
    for origin in ORIGINS:
        yield Station(f"made_{origin}", f"{origin} before", flow.made[origin], flow.of_cache_pool(origin=origin), origin)
    yield Station("cache_pool", "cache pool", flow.cache_pool, flow.of_cache_pool(), "accent-fill")
    yield Station("answered", "responded", flow.answered, flow.here(state="answered"), "student")
    yield Station("no_response", "no response", flow.no_response, flow.here(state="no_response"), "failed")
    not_asked = "not in the sample" if flow.outside_sample == flow.not_asked else "not answered yet"
    yield Station("not_asked", not_asked, flow.not_asked, flow.here(state="not_asked"), "line-strong")
    yield Station("judged", "judged", flow.judged, flow.here(), "teacher")
    yield Station("not_judged", "not judged yet", flow.not_judged, flow.here(state="not_judged"), "line-strong")
    for label in ("hard", "easy", "quarantined"):
        yield Station(label, label, flow.count(label=label), flow.here(verdict=label), label)
    yield Station("left_out", "left out", flow.count(left_out=True), flow.here(state="left_out"), "quarantined")
    for origin in ORIGINS:
        words = f"candidates, {origin}"
        yield Station(f"from_{origin}", words, flow.asked_from(origin), flow.of_candidates(origin=origin), origin)
    yield Station("accepted", "accepted", flow.accepted, flow.of_candidates(fate="accepted"), "finished")
    for reason in REASONS:
        words = reason.replace("_", " ")
        yield Station(reason, words, flow.fate(reason), flow.of_candidates(fate=reason), "line-strong")
    # How many are new: with those that were there before they are the pools of the table.
    yield Station("pools", "accepted, in both pools", flow.new.total(), flow.instructions(made=flow.number), "accent-fill")


def _ribbons(flow: IterationFlow) -> Iterator[Ribbon]:
    yield Ribbon("seed", "cache_pool", flow.made["seed"], flow.of_cache_pool(origin="seed"))
    for origin in ORIGINS:
        yield Ribbon(f"made_{origin}", "cache_pool", flow.made[origin], flow.of_cache_pool(origin=origin))
    yield Ribbon("cache_pool", "answered", flow.answered, flow.here(state="answered"))
    yield Ribbon("cache_pool", "no_response", flow.no_response, flow.here(state="no_response"))
    yield Ribbon("cache_pool", "not_asked", flow.not_asked, flow.here(state="not_asked"))
    for answered, source in ((True, "answered"), (False, "no_response")):
        waiting = flow.count(answered=answered, label="")
        yield Ribbon(source, "judged", flow.count(answered=answered) - waiting)
        yield Ribbon(source, "not_judged", waiting)
    for label in ("hard", "easy", "quarantined"):
        yield Ribbon("judged", label, flow.count(label=label), flow.here(verdict=label))
    yield Ribbon("quarantined", "left_out", flow.count(left_out=True), flow.here(state="left_out"))
    for origin in ORIGINS:
        yield from _of_candidates(flow, origin)
    yield Ribbon("accepted", "pools", flow.accepted, flow.instructions(made=flow.number))


def _of_candidates(flow: IterationFlow, origin: str) -> Iterator[Ribbon]:
    """Attempts of one origin, from their parents where a verdict chose those, to their fates."""
    if flow.by_verdict:
        yield Ribbon(origin, f"from_{origin}", flow.asked_from(origin), flow.of_candidates(origin=origin))
    for fate in (Fate.ACCEPTED.value, *REASONS):
        yield Ribbon(f"from_{origin}", fate, flow.candidates[origin, fate], flow.of_candidates(origin=origin, fate=fate))


TRAJECTORY_TOKENS = {
    "solved": ("finished", ""),
    "still_hard": ("hard", ""),
    "regressed": ("hard", "\\"),
    "still_easy": ("easy", ""),
    "newly_scored": ("line-strong", ""),
    "quarantined": ("quarantined", "/"),
}
"""The colour of each kind, and its hatching: two of them share a colour."""


def trajectory_chart(iterations: Sequence[Moved]) -> Chart:
    """What became of the judged, stacked; a click opens the instructions."""
    numbers = [i.number for i in iterations]
    figure = start_figure(x_title="Iteration", y_title="Instructions judged", barmode="stack")
    for kind in KINDS:
        token, hatch = TRAJECTORY_TOKENS[kind]
        pattern = {"shape": hatch, "size": 5, "solidity": 0.4} if hatch else None
        figure.add_bar(
            x=numbers,
            y=[i.counts[kind] for i in iterations],
            name=kind.replace("_", " "),
            customdata=[i.url(kind) for i in iterations],
            meta={"token": token},
            marker={"pattern": pattern},
            width=0.5,
        )
    whole_numbers(figure, numbers)
    last = iterations[-1] if iterations else None
    said = ", ".join(f"{last.counts[kind]} {kind.replace('_', ' ')}" for kind in KINDS) if last else ""
    return Chart(id="trajectory-chart", title="What became of them", summary=said and f"In the last one {said}.", figure=plain(figure))


def discrepancy_chart(iterations: Sequence[Moved]) -> Chart:
    """Mean d over all that was scored and over the seeds alone, with 95 % intervals."""
    figure = start_figure(x_title="Iteration", y_title="Mean d, points")
    lines = {
        "cache pool": ("hard", "circle", [(i.number, i.d) for i in iterations if i.d]),
        "seeds alone": ("student", "diamond", [(i.number, i.seed_d) for i in iterations if i.seed_d]),
    }
    for name, (token, symbol, points) in lines.items():
        figure.add_scatter(
            x=[number for number, _ in points],
            y=[round(mean.value, 4) for _, mean in points],
            error_y={"type": "data", "array": [mean.half and round(mean.half, 4) for _, mean in points], "thickness": 1.2, "width": 3},
            name=name,
            mode="lines+markers",
            hovertemplate="%{y:.2f}",
            marker={"symbol": symbol},
            meta={"token": token},
        )
    whole_numbers(figure, [i.number for i in iterations])
    figure.update_yaxes(rangemode="normal")
    last = iterations[-1] if iterations else None
    summary = f"Mean d of the last iteration: {last.d.value:.2f} over {last.d.n}." if last and last.d else ""
    return Chart(id="discrepancy-chart", title="Mean discrepancy d", summary=summary, figure=plain(figure))
