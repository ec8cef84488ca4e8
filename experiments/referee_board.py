"""How far to trust the referee of a run: its scores, how often the orders disagree, whether length wins, what reviewers say.

And what another tau would make of its verdicts, and what waits in quarantine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Avg, Count, F, OuterRef, Q, StdDev, Subquery

from experiments.agreement import Agreement, read_agreement
from experiments.length_bias import LengthBias, read_length_bias
from experiments.models import Iteration, Judgement, Run, Verdict
from experiments.querysets import tau_of
from experiments.querysets_referee import by_referee, score_bins
from experiments.querysets_reviews import is_decided, may_judge_again
from experiments.services.thresholds import next_judged
from trainer.records import Label, Order
from trainer.statistics import Estimate, Z, wilson

BINS = ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 10.0))
"""Of |d|, in points, the lower end included."""
REASONS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class FlipBin:
    """Verdicts with a |d| from low up to high, and the share of them whose orders lie on different sides of tau."""

    low: float
    high: float
    flips: int
    share: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why verdicts are quarantined that wait to be ruled, and how many."""

    text: str
    n: int

    @property
    def md5(self) -> str:
        """Short enough for an address."""
        return hashlib.md5(self.text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a tau makes of the stored discrepancies."""

    tau: float
    hard: int
    easy: int

    @property
    def hard_percent(self) -> float:
        return 100 * self.hard / max(self.hard + self.easy, 1)


@dataclass(frozen=True, kw_only=True)
class RefereeBoard:
    """One iteration. swapped: whether both orders were read; discrepancies: (d, count), ascending; first_preferred: in points."""

    iteration: Iteration
    tau: float
    swapped: bool
    flips: int
    flip_share: Estimate | None
    bins: Sequence[FlipBin]
    first_preferred: Estimate | None
    discrepancies: Sequence[tuple[float, int]]
    scores: Mapping[str, Mapping[float, int]]
    """`teacher` and `student`: lower end of a bin -> verdicts with a mean score in it."""
    lengths: LengthBias
    agreement: Agreement
    overruled: int
    quarantined: int
    waiting: int
    reasons: Sequence[Reason]
    decided: bool
    """Whether new instructions were made by these verdicts: nothing more can be ruled then."""
    try_again: bool
    """Whether the waiting may be judged once more by a word of a person."""
    reviews_count: bool
    """Whether a review still changes which instructions are parents."""
    next_iteration: int | None

    @property
    def scored(self) -> int:
        return sum(n for _, n in self.discrepancies)

    def split(self, tau: float) -> Split:
        """Hard and easy by another tau, at once: nothing is judged again."""
        hard = sum(n for d, n in self.discrepancies if d >= tau)
        return Split(tau=tau, hard=hard, easy=self.scored - hard)


def judged_iterations(run: Run) -> list[Iteration]:
    """The iterations of a run that have verdicts, in order."""
    judged = Verdict.objects.filter(iteration__run=run).order_by().values_list("iteration", flat=True).distinct()
    return list(run.iterations.filter(pk__in=judged).order_by("number"))


def read_referee(run: Run, iteration: Iteration) -> RefereeBoard:
    """The board of an iteration. Raises ConfigError where this version cannot read the run's config."""
    config = run.run_config()
    verdicts = Verdict.objects.filter(iteration=iteration).order_by()
    scored = verdicts.filter(discrepancy__isnull=False)
    swapped = config.discrimination.scoring == "joint" and config.discrimination.orders == "both"
    refereed = by_referee(verdicts)
    flips = refereed.filter(inconsistent=True).count()
    quarantined = verdicts.filter(label=Label.QUARANTINED)
    waiting = quarantined.filter(left_out=False)
    reasons = waiting.values_list("reason").annotate(n=Count("pk")).order_by("-n", "reason")[:REASONS_SHOWN]
    return RefereeBoard(
        iteration=iteration,
        tau=tau_of(run, iteration.number, default=config.loop.tau),
        swapped=swapped,
        flips=flips,
        flip_share=wilson(flips, refereed.count()) if swapped else None,
        bins=_bins(refereed) if swapped else (),
        first_preferred=_first_preferred(iteration) if swapped else None,
        discrepancies=list(scored.values_list("discrepancy").annotate(n=Count("pk")).order_by("discrepancy")),
        scores={role: score_bins(iteration, f"{role}_score") for role in ("teacher", "student")},
        lengths=read_length_bias(iteration),
        agreement=read_agreement(iteration),
        overruled=verdicts.exclude(overruled_to="").count(),
        quarantined=quarantined.count(),
        waiting=waiting.count(),
        reasons=[Reason(text=text, n=n) for text, n in reasons],
        decided=is_decided(iteration),
        try_again=may_judge_again(iteration),
        reviews_count=not is_decided(iteration),
        next_iteration=next_judged(run),
    )


def _bins(scored: Any) -> list[FlipBin]:
    inside = {
        f"bin_{place}": Q(discrepancy__gte=low, discrepancy__lt=high) | Q(discrepancy__lte=-low, discrepancy__gt=-high)
        for place, (low, high) in enumerate(BINS)
    }
    counts = scored.aggregate(
        **{name: Count("pk", filter=where) for name, where in inside.items()},
        **{f"{name}_flips": Count("pk", filter=where & Q(inconsistent=True)) for name, where in inside.items()},
    )
    return [
        FlipBin(low=low, high=high, flips=counts[f"bin_{place}_flips"], share=wilson(counts[f"bin_{place}_flips"], counts[f"bin_{place}"]))
        for place, (low, high) in enumerate(BINS)
    ]


def _first_preferred(iteration: Iteration) -> Estimate | None:
    """By how many points what was read first scored better than what was read second: 0 for a fair referee.

    The mean over pairs of judgements of one case by one referee, in both orders; half the difference of their d is what the place gave.
    """
    student_first = Judgement.objects.filter(
        iteration=iteration,
        order=Order.STUDENT_FIRST,
        failure="",
        instruction=OuterRef("instruction"),
        referee=OuterRef("referee"),
        sample=OuterRef("sample"),
    ).annotate(d=F("teacher_score") - F("student_score"))
    pairs = (
        Judgement.objects.filter(iteration=iteration, order=Order.TEACHER_FIRST, failure="")
        .order_by()
        .annotate(other=Subquery(student_first.values("d")[:1]))
        .filter(other__isnull=False)
        .annotate(gain=(F("teacher_score") - F("student_score") - F("other")) / 2)
    )
    told = pairs.aggregate(mean=Avg("gain"), n=Count("pk"), deviation=StdDev("gain", sample=True))
    if told["mean"] is None:
        return None
    half = Z * (told["deviation"] or 0.0) / told["n"] ** 0.5
    return Estimate(told["mean"], told["mean"] - half, told["mean"] + half, told["n"])
