import logging
import signal
import threading
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import InterfaceError, OperationalError, close_old_connections

from experiments.services import batch_polls, errands, jobs
from lionweb.broker import BROKER_ERRORS

logger = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Looks for lost jobs and forgotten batches every few seconds, for ever: a process of its own, so that no long job can hold it up"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="sweep once and end")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            jobs.sweep()
            errands.sweep()
            batch_polls.fetch_due()
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        threading.Thread(target=batch_polls.fetch_until, args=(stop,), name="batch-polls", daemon=True).start()
        sweep_until(stop, every_s=settings.LIONWEB_SWEEP_S)


def sweep_until(stop: threading.Event, *, every_s: float) -> None:
    """A database or broker that is away for a while is no reason to end: the next sweep finds what this one could not.

    After such a time, or when this machine slept, the leases of all workers are over though the workers are well: they get the
    time for a heartbeat first.
    """
    last = time.time()  # the clock on the wall goes on while a machine sleeps
    while not stop.is_set():
        well = time.time() - last < 3 * every_s + 1
        if not well:
            stop.wait(2 * settings.LIONWEB_HEARTBEAT_S)
        last = time.time()
        close_old_connections()
        try:
            jobs.sweep()
            errands.sweep()
        except (OperationalError, InterfaceError, *BROKER_ERRORS) as error:
            logger.warning("No sweep this time: %s", error)
            last = 0.0
        stop.wait(every_s)
