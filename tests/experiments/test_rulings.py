"""What people rule over a run's verdicts while it is under way: another tau, scores by hand, what is left out."""

import random
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User

from experiments.models import Job, Judgement, Run, Verdict
from experiments.services.book import PostgresBook
from experiments.services.jobs import judge_again
from experiments.services.quarantine import leave_out, score_by_hand
from experiments.services.thresholds import next_judged, set_tau
from experiments.states import JobState
from tests import make
from tests.make import make_finished_run, make_run_until
from trainer.errors import ConfigError
from trainer.plan import Planned, Stage, Step
from trainer.records import Label

pytestmark = pytest.mark.django_db


@pytest.fixture
def member(person: Callable[[str], User]) -> User:
    return person("member")


@pytest.fixture
def judged_run(member: User) -> Run:
    """Judged once; its new instructions are still to be made."""
    return make_run_until(member, 1, Step.CANDIDATES)


def quarantined(run: Run) -> Verdict:
    return Verdict.objects.filter(iteration__run=run, label=Label.QUARANTINED).earliest("pk")


def test_another_tau_holds_from_the_next_iteration_on_and_changes_no_verdict(judged_run: Run, member: User) -> None:
    before = list(Verdict.objects.order_by("pk").values_list("label", "discrepancy"))
    assert next_judged(judged_run) == 2
    set_tau(judged_run, 2.5, by=member)
    set_tau(judged_run, 3.5, by=member)
    book = PostgresBook(Job.objects.filter(stage__iteration__run=judged_run).latest("pk"))
    assert [book.tau(iteration) for iteration in (1, 2)] == [1.0, 3.5]
    book.close()
    assert list(Verdict.objects.order_by("pk").values_list("label", "discrepancy")) == before


def test_a_tau_comes_too_late_where_every_iteration_is_judged(member: User) -> None:
    run = make_finished_run(member)
    assert next_judged(run) is None
    with pytest.raises(ConfigError, match="Launch a new run"):
        set_tau(run, 2.0, by=member)


@pytest.mark.parametrize("tau", [9.5, -10.0, float("nan"), float("inf")])
def test_a_tau_out_of_range_is_refused(judged_run: Run, member: User, tau: float) -> None:
    with pytest.raises(ConfigError, match="from -9 to 9"):
        set_tau(judged_run, tau, by=member)
    assert not judged_run.thresholds.exists()


@pytest.mark.parametrize(("student", "label"), [(6.0, Label.HARD), (7.5, Label.EASY)])
def test_scores_by_hand_make_a_verdict_and_keep_its_judgements(judged_run: Run, member: User, student: float, label: Label) -> None:
    verdict = quarantined(judged_run)
    kept = Judgement.objects.filter(instruction=verdict.instruction).count()
    ruled = score_by_hand(verdict, teacher=8.0, student=student, by=member)
    ruled.refresh_from_db()
    assert (ruled.label, ruled.discrepancy, ruled.by_hand, ruled.ruled_by) == (label, 8.0 - student, True, member)
    assert Judgement.objects.filter(instruction=verdict.instruction).count() == kept
    assert score_by_hand(ruled, teacher=1.0, student=1.0, by=member).label == Label.EASY


def test_what_the_referee_scored_itself_is_not_scored_by_hand(judged_run: Run, member: User) -> None:
    with pytest.raises(ConfigError, match="scored this instruction itself"):
        score_by_hand(Verdict.objects.filter(label=Label.HARD).earliest("pk"), teacher=1.0, student=9.0, by=member)


@pytest.mark.parametrize(
    ("teacher", "student", "fields"), [(0.5, 5.0, {"teacher"}), (5.0, 11.0, {"student"}), (-1.0, 99.0, {"teacher", "student"})]
)
def test_scores_by_hand_are_from_1_to_10(judged_run: Run, member: User, teacher: float, student: float, fields: set[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        score_by_hand(quarantined(judged_run), teacher=teacher, student=student, by=member)
    assert set(refused.value.fields) == fields


def test_what_is_left_out_stays_quarantined_and_is_not_judged_again(judged_run: Run, member: User) -> None:
    verdict = quarantined(judged_run)
    assert leave_out(verdict.iteration, by=member, verdicts=[verdict.pk]) == 1
    assert leave_out(verdict.iteration, by=member, verdicts=[verdict.pk]) == 0
    book = PostgresBook(Job.objects.filter(stage__iteration__run=judged_run).latest("pk"))
    kept = book.verdicts(1)[verdict.instruction.key]
    book.close()
    assert (kept.label, kept.left_out) == (Label.QUARANTINED, True)


def test_verdicts_that_new_instructions_were_made_by_stay(member: User) -> None:
    run = make_run_until(member, 2, Step.STUDENT_RESPONSES)
    verdict = quarantined(run)
    with pytest.raises(ConfigError, match="made by the verdicts of iteration 1"):
        score_by_hand(verdict, teacher=8.0, student=2.0, by=member)
    with pytest.raises(ConfigError, match="made by the verdicts of iteration 1"):
        leave_out(verdict.iteration, by=member)


@pytest.mark.parametrize("ruling", ["by hand", "left out"])
def test_while_new_instructions_are_being_made_nothing_is_ruled(member: User, ruling: str) -> None:
    run = make.make_run_until(member, 1, Step.CANDIDATES)
    iteration = run.iterations.get(number=1)
    verdict = Verdict.objects.filter(iteration=iteration, label=Label.QUARANTINED).first()
    assert verdict
    make.make_job(iteration, Stage.GENERATION, Step.CANDIDATES, state=JobState.RUNNING)
    with pytest.raises(ConfigError, match="New instructions were made by the verdicts of iteration 1 already"):
        score_by_hand(verdict, teacher=9, student=2, by=member) if ruling == "by hand" else leave_out(iteration, by=member)


def test_what_is_quarantined_is_judged_once_more_by_a_word_of_a_person(member: User) -> None:
    run = make.make_run_until(member, 1, Step.CANDIDATES)
    iteration = run.iterations.get(number=1)
    judge_again(iteration)
    [job] = Job.objects.filter(stage__iteration=iteration, step=Step.JUDGEMENTS, state=JobState.QUEUED)
    assert job.queue == "teacher"
    with pytest.raises(ConfigError, match="the run is at work"):
        judge_again(iteration)
    Job.objects.filter(pk=job.pk).delete()
    make.do_step(run, Planned(1, Stage.GENERATION, Step.CANDIDATES), random.Random(0))
    with pytest.raises(ConfigError, match="new instructions were made"):
        judge_again(iteration)
