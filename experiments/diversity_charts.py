"""The diversity of a run's instructions as pictures: what is asked for (the paper's Figure 3) and how long it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import ceil
from urllib.parse import urlencode

import plotly.graph_objects as go
from django.urls import reverse

from experiments.charts import Chart, escape_label, plain, start_figure
from experiments.models import Run
from experiments.querysets_diversity import NONE

VERBS, NOUNS = 20, 4
"""As many root verbs, and objects of each, as the paper's figure draws; what is left of a verb is drawn without an object's name."""
SUNBURST_HEIGHT = 380
VERB_TOKENS = ("accent-fill", "teacher", "easy", "hard", "student", "finished")
NO_OBJECT, OTHER = "no object", "other"
LONGEST_BIN = 12
"""Bars of the chart of lengths."""


def sunburst(run: Run, id: str, title: str, counts: Counter[tuple[str, str]], filters: Mapping[str, object]) -> Chart:
    """Root verbs inside, their objects around them; a click opens the instructions. filters: what else the list is asked for."""
    by_verb: dict[str, Counter[str]] = {}
    for (verb, noun), n in counts.items():
        if verb:
            by_verb.setdefault(verb, Counter())[noun] += n
    drawn = sorted(by_verb.items(), key=lambda item: (-item[1].total(), item[0]))[:VERBS]
    address = reverse("run_instructions", args=[run.pk])

    def rows(**more: str) -> str:
        return f"{address}?{urlencode({**filters, **more})}"

    inner = [(verb, "", nouns.total(), rows(verb=verb)) for verb, nouns in drawn]
    outer = [sector for verb, nouns in drawn for sector in _objects(verb, nouns, rows)]
    token_of = {verb: VERB_TOKENS[place % len(VERB_TOKENS)] for place, (verb, _) in enumerate(drawn)}
    figure = go.Figure(layout={"height": SUNBURST_HEIGHT, "margin": {"l": 0, "r": 0, "t": 4, "b": 4}, "paper_bgcolor": "rgba(0,0,0,0)"})
    sectors = [*inner, *outer]
    figure.add_sunburst(
        ids=[f"{parent}/{name}" if parent else name for name, parent, _, _ in sectors],
        labels=[escape_label(name) for name, _, _, _ in sectors],
        parents=[parent for _, parent, _, _ in sectors],
        values=[n for _, _, n, _ in sectors],
        customdata=[url for _, _, _, url in sectors],
        branchvalues="total",
        hovertemplate="%{label}: %{value}<extra></extra>",
        sort=False,
        meta={"sectors": [token_of[parent or name] for name, parent, _, _ in sectors], "inner": len(inner)},
    )
    told, all_of_them = sum(nouns.total() for nouns in by_verb.values()), counts.total()
    note = f"{told:,} of {all_of_them:,} have a root verb"
    if len(by_verb) > VERBS:
        shown = sum(nouns.total() for _, nouns in drawn)
        note += f"; the {VERBS} commonest of {len(by_verb):,} verbs are drawn, {shown:,} instructions"
    summary = ", ".join(f"{verb} {nouns.total()}" for verb, nouns in drawn[:5])
    return Chart(id=id, title=title, summary=f"{title}: {summary or 'no root verb'}.", figure=plain(figure), note=note)


def _objects(verb: str, nouns: Counter[str], rows: Callable[..., str]) -> list[tuple[str, str, int, str]]:
    """The commonest objects of a verb, then what has none, then the rest in one sector that opens the verb's."""
    told = Counter({noun: n for noun, n in nouns.items() if noun}).most_common(NOUNS)
    sectors = [(noun, verb, n, rows(verb=verb, noun=noun)) for noun, n in told]
    if nouns[""]:
        sectors.append((NO_OBJECT, verb, nouns[""], rows(verb=verb, noun=NONE)))
    rest = nouns.total() - sum(n for _, _, n, _ in sectors)
    if rest:
        sectors.append((OTHER, verb, rest, rows(verb=verb)))
    return sectors


def length_chart(number: int, new: Counter[int], seeds: Counter[int]) -> Chart:
    """How long the new instructions are in words, beside the seeds, each as shares of its own."""
    longest = max([*new, *seeds], default=0)
    width = ceil((longest + 1) / LONGEST_BIN)
    figure = start_figure(x_title="Words", y_title="Share, %", barmode="group")
    sides = [("seeds", "line-strong", seeds)] + ([(f"made in iteration {number}", "student", new)] if number else [])
    for name, token, counts in sides if new or seeds else []:
        bins: Counter[int] = Counter()
        for words, n in counts.items():
            bins[words // width] += n
        places = range(min([*new, *seeds], default=0) // width, longest // width + 1)
        figure.add_bar(
            x=[_span(place, width) for place in places],
            y=[round(100 * bins[place] / max(counts.total(), 1), 2) for place in places],
            name=name,
            customdata=[bins[place] for place in places],
            hovertemplate="%{y:.1f} %, %{customdata} of them",
            meta={"token": token},
        )
    order = [_span(place, width) for place in range(min([*new, *seeds], default=0) // width, longest // width + 1)]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return Chart(id="length-chart", title="Length in words", summary=f"The longest has {longest} words.", figure=plain(figure))


def _span(place: int, width: int) -> str:
    return f"{place * width}" if width == 1 else f"{place * width} to {(place + 1) * width - 1}"
