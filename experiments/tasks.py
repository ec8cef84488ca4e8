"""The Celery tasks: look at a job, look at an errand. Whether there is something to do is the database's to say."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from celery import shared_task
from celery.signals import worker_shutting_down

from experiments import errand_runner, runner
from experiments.errand_work import WORK

logger = logging.getLogger(__name__)


@shared_task(name="experiments.tasks.run_job", ignore_result=True)
def run_job(job_id: int) -> None:
    """Before: the job is queued, or somebody else's by now. After: it is finished, failed, crashed or stopped."""
    runner.run_job(job_id, worker=_this_worker())


@shared_task(name="experiments.tasks.run_errand", ignore_result=True)
def run_errand(errand_id: int) -> None:
    """Before: the errand is queued, or somebody else's by now. After: it is finished, failed, crashed or stopped."""
    errand_runner.run_errand(errand_id, worker=_this_worker(), work=WORK)


def _this_worker() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{threading.get_ident()}"


@worker_shutting_down.connect
def give_jobs_back(**_: Any) -> None:
    """Running jobs end as soon as they can, and new ones take their place."""
    runner.shutting_down.set()
    errand_runner.shutting_down.set()
