"""The pool flow of a run: how instructions went through each iteration, as counts that add up exactly and open their rows.

    cache pool       = seeds + hard + easy made before        = answered + no response + not answered yet
    answered + no response = judged + not judged yet
    judged           = hard + easy + quarantined
    candidates       = from hard + from easy                  = accepted + rejected
    next cache pool  = cache pool + accepted

The counts are taken from the tables in a fixed number of queries, however many iterations there are; the sums hold while an iteration
is half done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from experiments import querysets_flow
from experiments.models import Run
from experiments.querysets_flow import Group
from trainer.records import Fate, Origin

ORIGINS = (Origin.HARD.value, Origin.EASY.value)
REASONS = tuple(fate.value for fate in Fate if fate is not Fate.ACCEPTED)


@dataclass(frozen=True, kw_only=True)
class IterationFlow:
    """What went through one iteration. made: of its cache pool, by origin; new: what it made itself."""

    run: int
    number: int
    made: Counter[str]
    new: Counter[str]
    groups: Sequence[Group]
    candidates: Counter[tuple[str, str]]
    sample: int = 0
    """The most of the cache pool that is judged; 0 for all of it."""
    accumulated: bool = False
    by_verdict: bool = True
    """Whether hard parents give the hard candidates and easy ones the easy."""

    # From the cache pool to the verdicts

    @property
    def cache_pool(self) -> int:
        return self.made.total()

    @property
    def answered(self) -> int:
        return self.count(answered=True)

    @property
    def no_response(self) -> int:
        return self.count(answered=False)

    @property
    def not_asked(self) -> int:
        return self.cache_pool - self.answered - self.no_response

    @property
    def outside_sample(self) -> int:
        """Of those not answered, the ones that will not be: they are not in the sample that is judged."""
        return max(0, self.cache_pool - self.sample) if self.sample else 0

    @property
    def judged(self) -> int:
        return self.count() - self.not_judged

    @property
    def not_judged(self) -> int:
        return self.count(label="")

    def count(self, **wanted: Any) -> int:
        """How many of the cache pool are so: by the fields of `Group`."""
        return sum(group.n for group in self.groups if all(getattr(group, name) == value for name, value in wanted.items()))

    # From the candidates to the next pools

    @property
    def attempts(self) -> int:
        return self.candidates.total()

    @property
    def accepted(self) -> int:
        return self.fate(Fate.ACCEPTED)

    @property
    def rejected(self) -> int:
        return self.attempts - self.accepted

    def fate(self, fate: str) -> int:
        return sum(n for (_, of), n in self.candidates.items() if of == fate)

    def asked_from(self, origin: str) -> int:
        return sum(n for (of, _), n in self.candidates.items() if of == origin)

    @property
    def train_pool(self) -> int:
        return self.new.total() + (self.cache_pool if self.accumulated else 0)

    @property
    def next_cache_pool(self) -> int:
        return self.cache_pool + self.new.total()

    # The rows behind a count

    def instructions(self, **filters: Any) -> str:
        return f"{reverse('run_instructions', args=[self.run])}?{urlencode(filters)}"

    def of_cache_pool(self, **filters: Any) -> str:
        return self.instructions(made_to=self.number - 1, **filters)

    def here(self, **filters: Any) -> str:
        """Instructions as this iteration found them."""
        return self.instructions(iteration=self.number, **filters)

    def of_candidates(self, **filters: Any) -> str:
        return f"{reverse('run_candidates', args=[self.run])}?{urlencode({'iteration': self.number, **filters})}"

    def of_train_pool(self) -> str:
        return self.instructions(made_to=self.number) if self.accumulated else self.instructions(made=self.number)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: one count in every iteration, with the address of its rows. sum: what it is the sum of, in words."""

    name: str
    words: str
    cells: Sequence[tuple[int, str]]
    sum: str = ""
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The flow of a run through the iterations that have begun and have a cache pool."""

    run: Any
    seeds: int
    iterations: Sequence[IterationFlow]
    rows: Sequence[Row] = field(default_factory=list)

    def iteration(self, asked: str) -> IterationFlow | None:
        """The one that is asked for, or the last."""
        found = (iteration for iteration in self.iterations if str(iteration.number) == asked)
        return next(found, self.iterations[-1] if self.iterations else None)


def read_flow(run: Run) -> Flow:
    """The flow of a run. Raises ConfigError where this version cannot read its config."""
    config = run.run_config()
    made, groups = querysets_flow.made_by_origin(run), querysets_flow.cache_pool_groups(run)
    candidates = querysets_flow.candidates_by_fate(run)
    iterations: list[IterationFlow] = []
    so_far: Counter[str] = Counter()
    for row in run.iterations.order_by("number"):
        new = made.get(row.pk, Counter())
        if row.number:
            one = IterationFlow(
                run=run.pk,
                number=row.number,
                made=Counter(so_far),
                new=new,
                groups=groups.get(row.pk, []),
                candidates=candidates.get(row.pk, Counter()),
                sample=config.discrimination.sample,
                accumulated=config.loop.train_pool == "accumulate",
                by_verdict=config.loop.parents == "by_verdict",
            )
            iterations.append(one)
        so_far.update(new)
    return Flow(run=run, seeds=so_far[Origin.SEED], iterations=iterations, rows=_rows(iterations))


def _rows(iterations: Sequence[IterationFlow]) -> list[Row]:
    """The table: totals with the parts they are the sum of below them."""
    rows = [*_cache_pool(iterations), *_answers(iterations), *_verdicts(iterations), *_candidates(iterations), *_next_pools(iterations)]
    return [row for row in rows if row.sum or any(n for n, _ in row.cells)]


def _row(name: str, words: str, cells: Sequence[tuple[int, str]], **options: str) -> Row:
    return Row(name=name, words=words, cells=list(cells), **options)


def _cache_pool(iterations: Sequence[IterationFlow]) -> list[Row]:
    origins = {"seed": "seeds", "hard": "made from hard parents before", "easy": "made from easy parents before"}
    return [
        _row("cache_pool", "Cache pool", [(i.cache_pool, i.of_cache_pool()) for i in iterations], sum="seeds + hard + easy made before"),
        *(
            _row(f"made_{origin}", words, [(i.made[origin], i.of_cache_pool(origin=origin)) for i in iterations], tone=origin)
            for origin, words in origins.items()
        ),
    ]


def _answers(iterations: Sequence[IterationFlow]) -> list[Row]:
    return [
        _row(
            "answered",
            "Responded",
            [(i.answered, i.here(state="answered")) for i in iterations],
            sum="cache pool \N{MINUS SIGN} no usable response \N{MINUS SIGN} not answered yet",
        ),
        _row("no_response", "no usable response", [(i.no_response, i.here(state="no_response")) for i in iterations]),
        _row("not_asked", _not_asked_words(iterations), [(i.not_asked, i.here(state="not_asked")) for i in iterations]),
        _row("outside_sample", "of these, not in the sample that is judged", [_outside_sample(i) for i in iterations]),
    ]


def _not_asked_words(iterations: Sequence[IterationFlow]) -> str:
    return "not answered yet, or not in the sample" if any(i.outside_sample for i in iterations) else "not answered yet"


def _outside_sample(i: IterationFlow) -> tuple[int, str]:
    """Which ones they are is known once the sample is answered: until then the count opens nothing."""
    return i.outside_sample, i.here(state="not_asked") if i.outside_sample == i.not_asked else ""


def _verdicts(iterations: Sequence[IterationFlow]) -> list[Row]:
    def labelled(label: str) -> list[tuple[int, str]]:
        return [(i.count(label=label), i.here(verdict=label)) for i in iterations]

    return [
        _row("judged", "Judged", [(i.judged, i.here()) for i in iterations], sum="hard + easy + quarantined"),
        _row("hard", "hard", labelled("hard"), tone="hard"),
        _row("easy", "easy", labelled("easy"), tone="easy"),
        _row("quarantined", "quarantined", labelled("quarantined"), tone="quarantined"),
        _row(
            "left_out", "of the quarantined, left out by a person", [(i.count(left_out=True), i.here(state="left_out")) for i in iterations]
        ),
        _row("by_hand", "of hard and easy, scored by hand", [(i.count(by_hand=True), i.here(state="by_hand")) for i in iterations]),
        _row(
            "overruled",
            "of hard and easy, overruled by a person",
            [(i.count(overruled=True), i.here(state="overruled")) for i in iterations],
        ),
        _row("not_judged", "responded or failed to, not judged yet", [(i.not_judged, i.here(state="not_judged")) for i in iterations]),
    ]


def _candidates(iterations: Sequence[IterationFlow]) -> list[Row]:
    return [
        _row("candidates", "Candidates", [(i.attempts, i.of_candidates()) for i in iterations], sum="accepted + rejected"),
        *(
            _row(
                f"from_{origin}",
                f"asked as {origin}",
                [(i.asked_from(origin), i.of_candidates(origin=origin)) for i in iterations],
                tone=origin,
            )
            for origin in ORIGINS
        ),
        _row("accepted", "Accepted", [(i.accepted, i.of_candidates(fate="accepted")) for i in iterations], sum="new hard + new easy"),
        *(
            _row(
                f"new_{origin}",
                f"new {origin}",
                [(i.new[origin], i.instructions(made=i.number, origin=origin)) for i in iterations],
                tone=origin,
            )
            for origin in ORIGINS
        ),
        _row("rejected", "Rejected", [(i.rejected, i.of_candidates(fate="rejected")) for i in iterations], sum="each for one reason"),
        *(
            _row(reason, reason.replace("_", " "), [(i.fate(reason), i.of_candidates(fate=reason)) for i in iterations])
            for reason in REASONS
        ),
    ]


def _next_pools(iterations: Sequence[IterationFlow]) -> list[Row]:
    accumulated = any(i.accumulated for i in iterations)
    return [
        _row(
            "train_pool",
            "Train pool",
            [(i.train_pool, i.of_train_pool()) for i in iterations],
            sum="cache pool + accepted: accumulated" if accumulated else "accepted: it replaces the one before",
        ),
        _row(
            "next_cache_pool",
            "Next cache pool",
            [(i.next_cache_pool, i.instructions(made_to=i.number)) for i in iterations],
            sum="cache pool + accepted",
        ),
    ]


def problems(flow: Flow) -> list[str]:
    """Sums that do not hold, a sentence each: none, unless rows were changed by hand."""
    return [f"Iteration {i.number}: {words}" for i in flow.iterations for words, holds in _laws(i).items() if not holds]


def _laws(i: IterationFlow) -> Mapping[str, bool]:
    return {
        "more instructions responded than the cache pool holds.": i.not_asked >= 0,
        f"{i.accepted} candidates were accepted, but {i.new.total()} instructions were made.": i.accepted == i.new.total(),
        "hard, easy and quarantined are not all that was judged.": i.judged
        == i.count(label="hard") + i.count(label="easy") + i.count(label="quarantined"),
    }
