"""What an imitation tells becomes rows: metrics many at a time, at most a second late, none lost however the job ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from experiments import runner
from experiments.models import Imitation, Job, Metric, Run
from experiments.services.book import PostgresBook
from experiments.states import JobState
from tests import make
from trainer import records
from trainer.errors import LossDiverged
from trainer.plan import Stage, Step
from trainer.records import Saved


@pytest.fixture
def job(transactional_db: None, person: Callable[[Any], User]) -> Job:
    """A tuning that runs."""
    run = make.make_run(person("member"))
    return make.make_job(run.iterations.get(), Stage.IMITATION, Step.TUNING)


@pytest.fixture
def book(job: Job) -> Iterator[PostgresBook]:
    with closing(PostgresBook(job)) as opened:
        yield opened


def metric(step: int) -> records.Metric:
    return records.Metric(step=step, steps=400, loss=1.0, learning_rate=1e-3, grad_norm=0.5, tokens_per_s=90.0, memory_gib=0.5)


def logged() -> int:
    return Metric.objects.count()


def test_a_hundred_metrics_are_one_insert_before_what_is_told_next(book: PostgresBook) -> None:
    with CaptureQueriesContext(connection) as asked:
        for step in range(1, 101):
            book.keep_news(0, metric(step))
        book.keep_news(0, Saved(step=100, steps=400))
    inserts = [query["sql"] for query in asked if query["sql"].startswith("INSERT") and "experiments_metric" in query["sql"]]
    assert len(inserts) == 1
    assert [row.step for row in Metric.objects.order_by("step")] == list(range(1, 101))
    assert (Imitation.objects.get().saved_step, Imitation.objects.get().steps) == (100, 400)
    assert book.items_done == 100


def test_a_metric_that_is_followed_by_nothing_is_there_about_a_second_later(book: PostgresBook) -> None:
    book.keep_news(0, metric(1))
    end = time.monotonic() + 20
    while not logged() and time.monotonic() < end:
        time.sleep(0.05)
    assert logged() == 1


def test_a_closed_book_keeps_nothing_back(job: Job) -> None:
    with closing(PostgresBook(job)) as book:
        book.keep_news(0, metric(1))
    assert logged() == 1


def test_a_tuning_that_ends_by_an_error_has_logged_all_it_told(
    job: Job, monkeypatch: pytest.MonkeyPatch, person: Callable[[Any], User]
) -> None:
    class Diverging:
        def imitate(self, *args: Any, tell: Callable[[records.TuningNews], None], **kwargs: Any) -> None:
            for step in range(1, 8):
                tell(metric(step))
            raise LossDiverged("The loss diverges at step 7 of 400. Lower imitation.learning_rate (2e-05).")

    monkeypatch.setattr(runner, "ChildStudent", lambda *args, **kwargs: Diverging())
    run = make.make_run_until(person("member"), 0, Step.TUNING, name="bold-lion-2")
    queued = make.make_job(run.iterations.get(), Stage.IMITATION, Step.TUNING, state=JobState.QUEUED, worker="")
    assert runner.run_job(queued.pk, worker="one") == JobState.FAILED
    assert list(queued.metrics.values_list("step", flat=True)) == list(range(1, 8))
    queued.refresh_from_db()
    assert "Lower imitation.learning_rate" in queued.reason


def test_what_could_not_be_written_is_written_by_the_next_try(book: PostgresBook, monkeypatch: pytest.MonkeyPatch) -> None:
    write = PostgresBook._insert
    monkeypatch.setattr(PostgresBook, "_insert", staticmethod(_away))
    book.keep_news(0, metric(1))
    with pytest.raises(OperationalError):
        book._metrics.flush()
    monkeypatch.setattr(PostgresBook, "_insert", staticmethod(write))
    book.keep_news(0, metric(2))
    book.keep_news(0, Saved(step=2, steps=400))
    assert logged() == 2


def _away(*args: Any, **kwargs: Any) -> None:
    raise OperationalError("the database is away")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away is waited for no minute here."""
    from experiments.services import book, durable

    monkeypatch.setattr(book, "durably", lambda work: durable.durably(work, for_s=0.2))


def test_a_step_told_twice_is_one_row(book: PostgresBook) -> None:
    for _ in range(2):
        book.keep_news(0, metric(5))
    book.keep_news(0, Saved(step=5, steps=400))
    assert logged() == 1


def test_a_preflight_and_a_first_batch_are_kept_as_they_are_read_back(job: Job, book: PostgresBook) -> None:
    found, batch = (
        make.make_preflight(problems=("Memory is tight.",)),
        make.make_first_batch(("<s>\x00Say \ud83d", False), ("hi</s>", True)),
    )
    book.keep_news(0, found)
    book.keep_news(0, batch)
    row = Imitation.objects.get(iteration__run=Run.objects.get(pk=job.stage.iteration.run_id))
    assert records.news_from_dict({"kind": "preflight", **row.preflight}) == found
    kept = records.news_from_dict({"kind": "first_batch", **row.first_batch})
    assert isinstance(kept, records.FirstBatch)
    assert kept.examples[0].pieces == (("<s>Say ?", False), ("hi</s>", True))
