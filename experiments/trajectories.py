"""Trajectories of a run: what became of each instruction from one iteration to the next, and the min-max claim as a curve.

    judged = solved + still hard + regressed + still easy + newly scored + quarantined

Solved: hard in the iteration before, easy now; regressed: the other way round. Newly scored: without scores in the iteration before,
since it was made then, quarantined, or not in the sample. Each iteration's verdicts are by its own tau.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from experiments import querysets_flow
from experiments.models import Run, Verdict
from experiments.querysets_flow import Mean

KINDS = ("solved", "still_hard", "regressed", "still_easy", "newly_scored", "quarantined")
CHANGES = {("hard", "easy"): "solved", ("hard", "hard"): "still hard", ("easy", "hard"): "regressed", ("easy", "easy"): "still easy"}


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The judged of one iteration by what became of them; `d` is the mean over all that was scored, `seed_d` over the seeds alone."""

    run: int
    number: int
    counts: Counter[str]
    d: Mean | None = None
    seed_d: Mean | None = None

    @property
    def judged(self) -> int:
        return self.counts.total()

    @property
    def judged_url(self) -> str:
        return self._url()

    @property
    def cells(self) -> list[tuple[str, int, str]]:
        """Kind, count, and the address of its rows."""
        return [(kind, self.counts[kind], self.url(kind)) for kind in KINDS]

    def url(self, kind: str) -> str:
        return self._url(verdict=kind) if kind == "quarantined" else self._url(state=kind)

    def _url(self, **filters: Any) -> str:
        return f"{reverse('run_instructions', args=[self.run])}?{urlencode({'iteration': self.number, **filters})}"


def read_trajectories(run: Run) -> list[Moved]:
    """The iterations of a run that have verdicts, in order, in a fixed number of queries."""
    moves, means = querysets_flow.verdict_moves(run), querysets_flow.mean_discrepancies_with_seeds(run)
    found = []
    for row in run.iterations.order_by("number"):
        if row.pk in moves:
            d, seed_d = means.get(row.pk, (None, None))
            found.append(Moved(run=run.pk, number=row.number, counts=_kinds(moves[row.pk]), d=d, seed_d=seed_d))
    return found


def _kinds(moves: Counter[tuple[str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (was, label), n in moves.items():
        counts[_kind(was, label)] += n
    return counts


def _kind(was: str, label: str) -> str:
    if label == "quarantined":
        return "quarantined"
    return CHANGES.get((was, label), "newly scored").replace(" ", "_")


def changes(verdicts: Sequence[Verdict]) -> list[str]:
    """What each verdict of one instruction says beside that of the iteration just before it; "" where there is nothing to say."""
    labels = {verdict.iteration.number: verdict.label for verdict in verdicts}
    return [CHANGES.get((labels.get(verdict.iteration.number - 1, ""), verdict.label), "") for verdict in verdicts]
