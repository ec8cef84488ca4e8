"""The one Celery task: look at a job. Whether there is something to do is the database's to say."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from celery import shared_task
from celery.signals import worker_shutting_down

from experiments import runner

logger = logging.getLogger(__name__)


@shared_task(name="experiments.tasks.run_job", ignore_result=True)
def run_job(job_id: int) -> None:
    """Before: the job is queued, or somebody else's by now. After: it is finished, failed, crashed or stopped."""
    worker = f"{socket.gethostname()}/{os.getpid()}/{threading.get_ident()}"
    runner.run_job(job_id, worker=worker)


@worker_shutting_down.connect
def give_jobs_back(**_: Any) -> None:
    """Running jobs end as soon as they can, and new ones take their place."""
    runner.shutting_down.set()
