"""How varied the instructions of each iteration are: what was measured once they were made, and counts of traits that open their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from experiments import querysets_diversity
from experiments.models import Run
from experiments.querysets_diversity import NONE, Lengths, Parents
from trainer.diversity import Diversity, Spread

SHOWN = 6
"""Languages that a cell names; the page counts the rest."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """A value with how many instructions have it, and the address of their rows."""

    words: str
    n: int
    url: str


@dataclass(frozen=True, kw_only=True)
class Childless:
    """Parents of one origin that nothing accepted was made from."""

    origin: str
    parents: int
    parents_url: str
    childless: int
    url: str
    expected: float


@dataclass(frozen=True, kw_only=True)
class IterationDiversity:
    """One iteration's new instructions; the seeds are iteration 0's."""

    run: int
    number: int
    made: int
    measured: Diversity | None = None
    lengths: Lengths | None = None
    verbs: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    parents: Mapping[str, Parents] = field(default_factory=dict)

    @property
    def spread(self) -> Spread | None:
        return self.measured.new if self.measured else None

    @property
    def seeds(self) -> Spread | None:
        """The seeds at the same sizes; None for the seeds themselves."""
        return self.measured.seeds if self.measured and self.number else None

    @property
    def alarms(self) -> Sequence[str]:
        return self.measured.alarms if self.measured else ()

    def rows(self, **filters: Any) -> str:
        return f"{reverse('run_instructions', args=[self.run])}?{urlencode({'made': self.number, **filters})}"

    @property
    def made_url(self) -> str:
        return self.rows()

    @property
    def different_verbs(self) -> int:
        return len([verb for verb in self.verbs if verb])

    @property
    def with_verb(self) -> int:
        return sum(n for verb, n in self.verbs.items() if verb)

    @property
    def commonest_verb(self) -> Count | None:
        told = sorted((-n, verb) for verb, n in self.verbs.items() if verb)
        return next((Count(words=verb, n=-n, url=self.rows(verb=verb)) for n, verb in told), None)

    @property
    def told_languages(self) -> list[Count]:
        return [
            Count(words=language or "not told", n=n, url=self.rows(language=language or NONE))
            for language, n in self.languages.most_common(SHOWN)
        ]

    @property
    def other_languages(self) -> int:
        return max(0, len(self.languages) - SHOWN)

    @property
    def childless(self) -> list[Childless]:
        here = f"{reverse('run_instructions', args=[self.run])}?iteration={self.number}&state="
        return [
            Childless(
                origin=origin,
                parents=found.parents,
                parents_url=f"{here}parents_{origin}",
                childless=found.childless,
                url=f"{here}childless_{origin}",
                expected=found.expected,
            )
            for origin, found in self.parents.items()
        ]


def read_diversity(run: Run) -> list[IterationDiversity]:
    """The iterations of a run that made instructions, in order. Raises ConfigError where this version cannot read its config."""
    config = run.run_config()
    measured, lengths = querysets_diversity.measured(run), querysets_diversity.lengths(run)
    verbs, languages = querysets_diversity.counts_of(run, "verb"), querysets_diversity.counts_of(run, "language")
    parents = querysets_diversity.parents_of(run, config)
    return [
        IterationDiversity(
            run=run.pk,
            number=number,
            made=n,
            measured=measured.get(number),
            lengths=lengths.get(number),
            verbs=verbs.get(number, Counter()),
            languages=languages.get(number, Counter()),
            parents=parents.get(number, {}),
        )
        for number, n in sorted(querysets_diversity.made(run).items())
    ]
