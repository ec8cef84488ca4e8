"""How soon a stop is noticed by what somebody looks on at."""

import time

import pytest
from django.utils import timezone

from experiments.errand_runner import ErrandPulse
from experiments.models import Checkpoint, Errand, ErrandKind
from experiments.states import JobState
from tests import make


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("kind", "soon"), [(ErrandKind.ANSWER, True), (ErrandKind.MERGED, False)])
def test_an_answer_is_stopped_within_seconds_whatever_the_heartbeat(person, settings, kind, soon):
    settings.LIONWEB_HEARTBEAT_S = 60
    run = make.make_finished_run(person("member"))
    checkpoint = Checkpoint.objects.filter(iteration__run=run).first()
    held = {"state": JobState.RUNNING, "worker": "one", "lease_expires_at": timezone.now(), "stop_requested_at": timezone.now()}
    errand = Errand.objects.create(kind=kind, checkpoint=checkpoint, requested_by=run.owner, **held)
    with ErrandPulse(errand) as pulse:
        until = time.monotonic() + 3
        while not pulse.cancelled and time.monotonic() < until:
            time.sleep(0.05)
        assert pulse.cancelled is soon
