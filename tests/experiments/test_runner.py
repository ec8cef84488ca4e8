"""How a job ends when something goes wrong in its step: in its row, in words, with everything paid for kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DataError

from experiments import runner
from experiments.models import Job, Run
from experiments.querysets import runs_with_state
from experiments.states import LIVE, JobState, RunState
from tests import make
from trainer.config import EvaluationConfig
from trainer.errors import Cancelled, ChildDied, ConfigError, LossDiverged, NoSpace, OutOfMemory
from trainer.plan import Stage, Step


@pytest.fixture
def run(transactional_db: None, person: Callable[[Any], User]) -> Run:
    """A run whose seeds are answered and whose first tuning is queued."""
    config = replace(make.make_config(iterations=1), evaluation=EvaluationConfig())
    return make.make_run_until(person("member"), 0, Step.TUNING, config=config)


class FailingStudent:
    """A student whose tuning ends in an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *args: Any, **kwargs: Any) -> FailingStudent:
        return self

    def imitate(self, *args: Any, **kwargs: Any) -> None:
        raise self._error


def tune(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Job:
    monkeypatch.setattr(runner, "ChildStudent", FailingStudent(error))
    job = make.make_job(run.iterations.get(), Stage.IMITATION, Step.TUNING, state=JobState.QUEUED, worker="")
    runner.run_job(job.pk, worker="one")
    job.refresh_from_db()
    return job


@pytest.mark.parametrize("error", [NoSpace("The disk has 1 MB left and the checkpoint needs 2 GB."), OutOfMemory("Lower the batch.")])
def test_what_a_person_can_mend_fails_the_job_with_the_sentence_that_says_how(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, client_of: Callable[[Any], Any]
) -> None:
    job = tune(run, monkeypatch, error)
    assert (job.state, job.reason) == (JobState.FAILED, str(error))
    assert runs_with_state().get(pk=run.pk).state == RunState.FAILED
    assert str(error) in client_of("viewer").get(f"/runs/{run.pk}/").content.decode()
    assert run.instructions.filter(responses__role="teacher").count() == run.instructions.count()


@pytest.mark.parametrize(
    ("error", "at_fault"),
    [
        (OutOfMemory("Lower the batch."), True),
        (LossDiverged("The loss is no number.", fields={"imitation.learning_rate": "too high"}), True),
        (ConfigError("No key in LIONWEB_KEY.", fields={}), False),
        (ConfigError("The Hub could not be reached for 'a/b', and this worker has no copy."), False),
        (NoSpace("The disk is full."), False),
    ],
)
def test_a_failure_by_a_frozen_setting_is_told_from_one_that_passes(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, at_fault: bool, client_of: Callable[[Any], Any]
) -> None:
    assert tune(run, monkeypatch, error).config_at_fault is at_fault
    page = client_of("member").get(f"/runs/{run.pk}/").content.decode()
    assert ('id="clone" class="button primary"' in page) is at_fault
    assert ('<button class="button primary" type="submit">Resume' in page) is not at_fault
    assert ("config is frozen" in page) is at_fault


def test_a_child_that_died_is_a_crash_and_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tune(run, monkeypatch, ChildDied("The student's process was killed by signal 9."))
    assert job.state == JobState.CRASHED
    assert Job.objects.filter(step=Step.TUNING, state__in=LIVE).count() == 1


def test_an_error_nobody_foresaw_is_told_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tune(run, monkeypatch, ZeroDivisionError("division by zero"))
    assert job.state == JobState.FAILED
    assert "ZeroDivisionError: division by zero" in job.reason


class WaitingStudent:
    """A student whose tuning goes on until it is told to stop."""

    def __init__(self, *args: Any, should_stop: Callable[[], bool], **kwargs: Any) -> None:
        self._should_stop = should_stop

    def imitate(self, *args: Any, **kwargs: Any) -> None:
        for _ in range(500):
            time.sleep(0.01)
            if self._should_stop():
                raise Cancelled("Stopped.")
        raise AssertionError("it was never told to stop")


@pytest.mark.parametrize("error", [DataError("integer out of range"), RuntimeError("can't start new thread")])
def test_a_job_whose_heartbeat_fails_for_any_reason_stops_and_leaves_its_row_to_the_sweep(
    run: Run, monkeypatch: pytest.MonkeyPatch, settings: Any, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    settings.LIONWEB_HEARTBEAT_S = 0.02
    monkeypatch.setattr(runner, "ChildStudent", WaitingStudent)
    monkeypatch.setattr(runner.jobs, "heartbeat", fail)
    job = make.make_job(run.iterations.get(), Stage.IMITATION, Step.TUNING, state=JobState.QUEUED, worker="")
    assert runner.run_job(job.pk, worker="one") == ""
    job.refresh_from_db()
    assert job.state == JobState.RUNNING  # until its lease is over


def test_a_job_that_is_over_is_not_done_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tune(run, monkeypatch, NoSpace("The disk is full."))
    assert runner.run_job(job.pk, worker="two") == ""
    job.refresh_from_db()
    assert job.worker == "one"
