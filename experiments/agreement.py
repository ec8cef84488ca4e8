"""Agreement of the referee with the people who reviewed its verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.models import Iteration, Verdict
from experiments.models.verdict import EASY, HARD
from experiments.querysets_reviews import SPLIT, reviewed
from trainer.statistics import KAPPA_LEAST, Estimate, cohen_kappa, wilson


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The reviewed verdicts of one iteration. counts: (referee's label, what most reviewers say) -> verdicts; split ones are apart."""

    counts: Mapping[tuple[str, str], int]
    split: int
    share: Estimate | None
    kappa: Estimate | None

    @property
    def kappa_is_known(self) -> bool:
        """Whether there are enough cases for an interval of kappa."""
        return self.kappa is not None and self.kappa.n >= KAPPA_LEAST

    @property
    def ruled(self) -> int:
        """Verdicts of which most reviewers say the same."""
        return sum(self.counts.values())

    @property
    def agreed(self) -> int:
        return self.counts[HARD, HARD] + self.counts[EASY, EASY]

    @property
    def reviewed(self) -> int:
        return self.ruled + self.split

    @property
    def rows(self) -> Sequence[tuple[str, Sequence[tuple[str, int]]]]:
        """Referee's label, with (review's label, verdicts) for each."""
        return [(said, [(ruling, self.counts[said, ruling]) for ruling in (HARD, EASY)]) for said in (HARD, EASY)]


def read_agreement(iteration: Iteration) -> Agreement:
    """The agreement in an iteration, in one query."""
    rulings = Counter(reviewed(Verdict.objects.filter(iteration=iteration).order_by()).values_list("label", "ruling"))
    counts = {(said, ruling): rulings[said, ruling] for said in (HARD, EASY) for ruling in (HARD, EASY)}
    agreed = counts[HARD, HARD] + counts[EASY, EASY]
    return Agreement(
        counts=counts,
        split=sum(n for (_, ruling), n in rulings.items() if ruling == SPLIT),
        share=wilson(agreed, sum(counts.values())),
        kappa=cohen_kappa([[counts[said, ruling] for ruling in (HARD, EASY)] for said in (HARD, EASY)]),
    )
