"""Errands: one claim wins, a lost one ends, a stop is heard, and a message twice does the work once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from experiments.errand_runner import run_errand
from experiments.models import Checkpoint, Errand, ErrandKind
from experiments.services import errands
from experiments.states import MOVES, JobState
from tests import make
from trainer.errors import Cancelled, ChildDied, ConfigError

FORBIDDEN = [(source, target) for source in JobState for target in JobState if target not in MOVES[source]]


@pytest.fixture
def checkpoint(person):
    make.make_finished_run(person("member"), config=make.make_config(iterations=0))
    return Checkpoint.objects.get()


@pytest.fixture
def errand(checkpoint, person):
    return errands.ask(ErrandKind.VERIFY, checkpoint, by=person("member"))


def claimed(errand, worker="one"):
    held = errands.claim(errand.pk, worker=worker)
    assert held is not None
    return held


def state_of(errand):
    return Errand.objects.get(pk=errand.pk).state


def expire(errand):
    Errand.objects.filter(pk=errand.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))


def test_an_errand_is_claimed_once(errand):
    assert claimed(errand).worker == "one"
    assert errands.claim(errand.pk, worker="two") is None
    assert Errand.objects.get().worker == "one"


@pytest.mark.django_db(transaction=True)
def test_of_eight_workers_at_once_one_gets_it(errand):
    def claim(number):
        try:
            return errands.claim(errand.pk, worker=str(number))
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        got = [held for held in pool.map(claim, range(8)) if held]
    assert len(got) == 1


@pytest.mark.parametrize(("source", "target"), FORBIDDEN)
def test_no_other_moves_than_those_of_jobs(errand, source, target):
    lease = {"lease_expires_at": timezone.now(), "worker": "one"} if source == JobState.RUNNING else {}
    Errand.objects.filter(pk=errand.pk).update(state=source, **lease)
    assert not errands.move(errand.pk, target)
    assert state_of(errand) == source


def test_a_running_errand_has_a_lease(errand):
    with pytest.raises(IntegrityError), transaction.atomic():
        Errand.objects.filter(pk=errand.pk).update(state=JobState.RUNNING)


def test_a_heartbeat_keeps_the_note_and_the_lease(errand):
    held = claimed(errand)
    expire(errand)
    assert errands.heartbeat(held, note="half way\0") == errands.Beat(held=True, stop=False)
    found = Errand.objects.get()
    assert found.note == "half way"
    assert found.lease_expires_at > timezone.now()


def test_an_errand_whose_lease_is_over_is_lost_and_not_tried_again(errand):
    held = claimed(errand)
    assert errands.sweep() == 0
    expire(errand)
    assert errands.sweep() == 1
    found = Errand.objects.get()
    assert (found.state, found.reason) == (JobState.CRASHED, "Worker one was not heard of any more. Ask again.")
    assert not errands.heartbeat(held).held
    assert not errands.end(held, JobState.FINISHED, result={"too": "late"})
    assert Errand.objects.get().result == {}


def test_another_worker_cannot_end_it(errand):
    claimed(errand)
    other = Errand.objects.get()
    other.worker = "two"
    assert not errands.end(other, JobState.FINISHED)
    assert state_of(errand) == JobState.RUNNING


def test_a_queued_errand_stops_at_once(errand):
    errands.stop(errand)
    assert state_of(errand) == JobState.STOPPED
    assert errands.claim(errand.pk, worker="one") is None


def test_a_running_errand_hears_of_the_stop_at_its_next_heartbeat(errand):
    held = claimed(errand)
    errands.stop(errand)
    assert state_of(errand) == JobState.RUNNING
    expire(errand)
    assert errands.heartbeat(held) == errands.Beat(held=True, stop=True)
    assert errands.sweep() == 0  # it keeps its lease while it stops
    assert errands.end(held, JobState.STOPPED, reason="Stopped.")


def test_what_was_given_up_changes_nothing_any_more(errand):
    held = claimed(errand)
    with errands.while_held(held):
        pass
    expire(errand)
    errands.sweep()
    with pytest.raises(Cancelled), errands.while_held(held):
        pytest.fail("it is not held")


@pytest.mark.django_db(transaction=True)
def test_the_work_hears_of_the_stop(errand, settings):
    settings.LIONWEB_HEARTBEAT_S = 0.02

    def wait(errand, pulse):
        errands.stop(errand)
        for _ in range(500):
            pulse._over.wait(0.01)
            if pulse.cancelled:
                raise Cancelled("Stopped half way.")
        raise AssertionError("never heard of it")

    assert _run(errand, wait) == JobState.STOPPED
    assert Errand.objects.get().reason == "Stopped half way."


@pytest.mark.django_db(transaction=True)
def test_work_that_is_slow_to_stop_is_not_taken_for_lost(errand, settings):
    settings.LIONWEB_HEARTBEAT_S, settings.LIONWEB_LEASE_S = 0.02, 0.3

    def wait(errand, pulse):
        errands.stop(errand)
        for _ in range(3):
            pulse._over.wait(0.2)
            assert errands.sweep() == 0
        raise Cancelled("Stopped at last.")

    assert _run(errand, wait) == JobState.STOPPED
    assert Errand.objects.get().reason == "Stopped at last."


@pytest.mark.django_db(transaction=True)
def test_a_message_twice_does_the_work_once(errand):
    done = []

    def work(errand, pulse):
        done.append(errand.pk)
        return {"problems": []}

    assert _run(errand, work) == JobState.FINISHED
    assert _run(errand, work) == ""
    assert done == [errand.pk]
    assert Errand.objects.get().result == {"problems": []}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ConfigError("Set HF_TOKEN."), JobState.FAILED, "Set HF_TOKEN."),
        (ChildDied("Killed."), JobState.CRASHED, "Killed."),
        (ValueError("odd"), JobState.FAILED, "An error nobody foresaw, please report it: ValueError: odd"),
    ],
)
def test_how_the_work_failed_is_a_sentence_of_the_row(errand, error, state, reason):
    def work(errand, pulse):
        raise error

    assert _run(errand, work) == state
    assert Errand.objects.get().reason == reason


def test_a_queued_errand_nobody_was_told_of_is_announced_again(errand, monkeypatch):
    told = []
    monkeypatch.setattr(errands, "announce", lambda errand: told.append(errand.pk))
    errands.sweep()
    assert told == [errand.pk]


def _run(errand, work):
    return run_errand(errand.pk, worker="one", work={errand.kind: work})
