"""Reviews overrule the referee in what comes next, and leave its verdicts as they are."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from experiments.flow import problems, read_flow
from experiments.models import Job, Review, Run, Verdict
from experiments.services.book import PostgresBook
from experiments.services.jobs import claim
from experiments.services.reviews import review, withdraw
from tests.make import make_config, make_finished_run, make_job, make_run_until
from trainer.errors import ConfigError
from trainer.generation import parents_for
from trainer.plan import Stage, Step
from trainer.records import Label, Origin

pytestmark = pytest.mark.django_db

Person = Callable[[str], User]


@pytest.fixture
def run(person: Person) -> Run:
    """Judged once; its new instructions are still to be made."""
    return make_run_until(person("member"), 1, Step.CANDIDATES)


def hard_one(run: Run) -> Verdict:
    return Verdict.objects.filter(iteration__run=run, iteration__number=1, label=Label.HARD).earliest("pk")


def parents(run: Run) -> dict[Origin, set[str]]:
    """The keys of the parents that the next generation draws from."""
    book = PostgresBook(Job.objects.filter(stage__iteration__run=run).latest("pk"))
    found = parents_for(book.cache_pool(1), book.verdicts(1), config=run.run_config().loop)
    book.close()
    return {origin: {instruction.key for instruction in instructions} for origin, instructions in found.items()}


def test_an_overruled_verdict_makes_a_parent_of_the_other_kind_and_its_row_stays(run: Run, person: Person) -> None:
    verdict, before = hard_one(run), parents(run)
    review(verdict, label="easy", comment="No worse.", by=person("member"))
    after, key = parents(run), verdict.instruction.key
    assert before[Origin.HARD] - after[Origin.HARD] == after[Origin.EASY] - before[Origin.EASY] == {key}
    stored = Verdict.objects.get(pk=verdict.pk)
    assert (stored.label, stored.discrepancy, stored.teacher_score) == (verdict.label, verdict.discrepancy, verdict.teacher_score)
    withdraw(verdict, by=person("member"))
    assert parents(run) == before


def test_to_agree_changes_nothing(run: Run, person: Person) -> None:
    before = parents(run)
    review(hard_one(run), label="hard", by=person("member"))
    assert parents(run) == before


def test_most_reviewers_decide_and_where_they_are_split_the_referee_does(run: Run, person: Person) -> None:
    verdict = hard_one(run)
    for role, label, overruled in (("member", "easy", "easy"), ("admin", "hard", ""), ("viewer", "easy", "easy"), ("viewer", "hard", "")):
        review(verdict, label=label, by=person(role))
        verdict.refresh_from_db()
        assert verdict.overruled_to == overruled, (role, label)
    assert Review.objects.count() == 3


def test_ruling_again_changes_ones_review(run: Run, person: Person) -> None:
    verdict, member = hard_one(run), person("member")
    first = review(verdict, label="easy", comment="one", by=member)
    again = review(verdict, label="hard", comment="two", by=member)
    assert (again.pk, again.label, again.comment, again.created_at) == (first.pk, "hard", "two", first.created_at)
    assert again.updated_at > first.updated_at
    with pytest.raises(IntegrityError), transaction.atomic():
        Review.objects.create(verdict=verdict, reviewer=member, label="easy")


def test_the_database_takes_no_other_label(run: Run, person: Person) -> None:
    verdict = hard_one(run)
    with pytest.raises(IntegrityError), transaction.atomic():
        Review.objects.create(verdict=verdict, reviewer=person("member"), label="quarantined")
    for label in ("hard", "quarantined"):
        with pytest.raises(IntegrityError), transaction.atomic():
            Verdict.objects.filter(pk=verdict.pk).update(overruled_to=label)
    with pytest.raises(ConfigError, match="hard or easy"):
        review(verdict, label="quarantined", by=person("member"))


def test_what_was_made_already_keeps_its_parents(person: Person) -> None:
    run = make_finished_run(person("member"))
    verdict, before = hard_one(run), parents(run)
    review(verdict, label="easy", by=person("member"))
    assert parents(run) == before
    assert Review.objects.get().label == "easy"


def test_a_review_that_had_its_say_is_not_unsaid_afterwards(run: Run, person: Person) -> None:
    """Else a resumed generation would draw other parents than the ones its first candidates had."""
    verdict, member = hard_one(run), person("member")
    review(verdict, label="easy", by=member)
    before = parents(run)
    iteration = run.iterations.get(number=1)
    iteration.candidates.create(key="i1-hard-000000", origin="hard", attempt=0, parent=verdict.instruction, text="", fate="empty")
    withdraw(verdict, by=member)
    assert parents(run) == before
    assert not Review.objects.exists()


def test_while_new_ones_are_being_made_a_review_comes_too_late(run: Run, person: Person) -> None:
    job = make_job(run.iterations.get(number=1), Stage.GENERATION, Step.CANDIDATES, state="queued", worker="", started_at=None)
    verdict, member = hard_one(run), person("member")
    review(verdict, label="easy", by=member)
    before = parents(run)
    assert claim(job.pk, worker="host/1/2")
    withdraw(verdict, by=member)
    assert parents(run) == before
    Job.objects.filter(pk=job.pk).update(state="failed")
    review(verdict, label="hard", by=member)
    assert parents(run) != before


def test_the_flow_counts_the_overruled_and_still_adds_up(run: Run, person: Person) -> None:
    for verdict in Verdict.objects.filter(iteration__run=run, label=Label.HARD).order_by("pk")[:3]:
        review(verdict, label="easy", by=person("member"))
    flow = read_flow(run)
    assert problems(flow) == []
    row = next(row for row in flow.rows if row.name == "overruled")
    assert [n for n, _ in row.cells] == [3]
    hard = Verdict.objects.filter(iteration__run=run, label=Label.HARD).count()
    assert flow.iterations[0].count(label="hard") == hard


def test_a_run_without_reviews_has_no_row_for_them(person: Person) -> None:
    flow = read_flow(make_finished_run(person("member"), config=make_config(iterations=1)))
    assert all(row.name != "overruled" for row in flow.rows)
