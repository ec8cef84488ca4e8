"""The questions asked of reviews: what most reviewers say of a verdict, and whether a review still changes what comes next."""

from __future__ import annotations

from typing import Any

from django.db.models import Case, CharField, Count, Exists, F, OuterRef, Q, QuerySet, Value, When

from experiments.models import Candidate, Iteration, Job, Review, Verdict
from experiments.models.verdict import EASY, HARD
from experiments.states import LIVE, JobState
from trainer.plan import Step

SPLIT = ""
"""The ruling of reviewers of whom as many say hard as easy: it changes nothing."""

REVIEW_STATES = {
    "reviewed": "reviewed",
    "agreed": "reviewed, as the referee said",
    "review_hard": "hard by review",
    "review_easy": "easy by review",
    "review_split": "reviewers are split",
    "overruled": "overruled before new ones were made",
}
"""What may be asked of the verdicts of an iteration, and its words."""


def reviewed(verdicts: QuerySet[Verdict]) -> QuerySet[Any]:
    """Those of the verdicts that were reviewed, each with the `ruling` of most of its reviewers: hard, easy or SPLIT."""
    rows = verdicts.filter(Exists(Review.objects.filter(verdict=OuterRef("pk"))))
    said = {f"said_{label}": Count("reviews", filter=Q(reviews__label=label)) for label in (HARD, EASY)}
    return rows.annotate(**said).annotate(
        ruling=Case(
            When(said_hard__gt=F("said_easy"), then=Value(HARD)),
            When(said_easy__gt=F("said_hard"), then=Value(EASY)),
            default=Value(SPLIT),
            output_field=CharField(),
        )
    )


def in_review_state(iteration: Iteration, state: str) -> QuerySet[Any]:
    """The verdicts of an iteration that are in a state of REVIEW_STATES."""
    verdicts = Verdict.objects.filter(iteration=iteration).order_by()
    if state == "overruled":
        return verdicts.exclude(overruled_to="")
    wanted = {"reviewed": Q(), "agreed": Q(ruling=F("label"))}
    wanted |= {f"review_{name}": Q(ruling=ruling) for name, ruling in (("hard", HARD), ("easy", EASY), ("split", SPLIT))}
    return reviewed(verdicts).filter(wanted[state])


def may_judge_again(iteration: Iteration) -> bool:
    """Whether what is quarantined may be judged once more: judging is over, nothing came of it yet, and the run is not at work."""
    jobs = Job.objects.filter(stage__iteration__run=iteration.run_id)
    judged = jobs.filter(stage__iteration=iteration, step=Step.JUDGEMENTS.value, state=JobState.FINISHED).exists()
    return judged and not jobs.filter(state__in=sorted(LIVE)).exists() and not is_decided(iteration)


def is_decided(iteration: Iteration) -> bool:
    """Whether new instructions were made by an iteration's verdicts, or are being made: no review changes which are its parents then."""
    made = Candidate.objects.filter(iteration=OuterRef("pk"))
    making = Job.objects.filter(stage__iteration=OuterRef("pk"), step=Step.CANDIDATES.value, state=JobState.RUNNING)
    return Iteration.objects.filter(Exists(made) | Exists(making), pk=iteration.pk).exists()
