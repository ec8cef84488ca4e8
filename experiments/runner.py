"""One job: rows become trainer records, one step of the loop runs, its results become rows, and the job says how it ended."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from experiments.models import Job
from experiments.querysets import items_done
from experiments.services import jobs
from experiments.services.benchmarks import imported_items
from experiments.services.book import PostgresBook
from experiments.services.durable import durably
from experiments.services.endpoints import live_endpoints
from experiments.states import JobState
from lionweb.logs import log_ids
from trainer.addresses import AddressGuard
from trainer.benchmarks import get_benchmark
from trainer.child_student import ChildStudent
from trainer.config import RunConfig
from trainer.contamination import HeldOut
from trainer.endpoints import EndpointRoles, open_roles
from trainer.errors import BudgetSpent, Cancelled, ChildDied, ConfigError, OutOfMemory, TrainerError
from trainer.held_out import held_out_items
from trainer.loop import run_step
from trainer.plan import Planned, Stage, Step
from trainer.pools import judged_pool
from trainer.records import Label
from trainer.roles import Student
from trainer.served_student import with_server

logger = logging.getLogger(__name__)

shutting_down = threading.Event()
"""Set when this worker was told to end: running jobs give themselves back."""


def run_job(job_id: int, *, worker: str) -> str:
    """Claim a job and do it. Gives its final state, or "" where another worker has it or it is over."""
    job = jobs.claim(job_id, worker=worker)
    if job is None:
        return ""
    try:
        book = PostgresBook(job)
    except ConfigError as error:  # a config of another version
        jobs.end(job, JobState.FAILED, reason=str(error))
        return JobState.FAILED
    pulse = Pulse(job, book)
    desk = JobDesk(book, pulse)
    with log_ids(run=book.run.pk, iteration=job.stage.iteration.number, job=job.pk), pulse, closing(book):
        state, reason = _do(job, book, desk)
    if pulse.lost:
        logger.warning("job %s was given to another worker", job.pk)
        return ""
    durably(
        lambda: jobs.end(
            job,
            state,
            reason=reason,
            note=" ".join(desk.notes),
            items_done=book.items_done,
            over_budget=desk.over_budget,
            config_at_fault=desk.config_at_fault,
        )
    )
    return state


def _do(job: Job, book: PostgresBook, desk: JobDesk) -> tuple[str, str]:
    """Run the step; its final state and the reason in words. The outer edge: every error ends here, in a row a person can read."""
    planned = Planned(job.stage.iteration.number, Stage(job.stage.name), Step(job.step))
    try:
        before, total = _items(planned, book, book.config)
        book.items_done = before
        durably(lambda: jobs.begin_items(job, before=before, total=total))
        run_step(planned, book, desk, book.config)
    except (Cancelled, asyncio.CancelledError) as stopped:
        if shutting_down.is_set():
            return JobState.STOPPED, "The worker was shut down; another job goes on."
        return JobState.STOPPED, str(stopped) or "Stopped; what was done is kept."
    except BudgetSpent as spent:
        desk.over_budget = True
        return JobState.STOPPED, str(spent)
    except ChildDied as died:
        return JobState.CRASHED, str(died)
    except TrainerError as error:
        desk.config_at_fault = _is_by_config(error)
        return JobState.FAILED, str(error)
    except (OperationalError, InterfaceError) as error:
        return JobState.CRASHED, f"The database was away for too long: {error}"
    except BaseException as error:
        logger.exception("job %s failed", job.pk)
        return JobState.FAILED, f"An error nobody foresaw, please report it: {''.join(traceback.format_exception_only(error)).strip()}"
    return JobState.FINISHED, ""


def _is_by_config(error: TrainerError) -> bool:
    """Whether a setting of the run has to change, which a frozen config cannot: the same run would only fail at it again."""
    return isinstance(error, OutOfMemory) or (isinstance(error, ConfigError) and bool(error.fields))


def _items(planned: Planned, book: PostgresBook, config: RunConfig) -> tuple[int, int]:
    """How many items of a step are done, of how many."""
    done = items_done(planned.step, book.job.stage.iteration)
    match planned.step:
        case Step.TEACHER_RESPONSES:
            pool, answered = book.train_pool(planned.iteration), book.teacher_responses()
            return sum(i.key in answered and not answered[i.key].failure for i in pool), len(pool)
        case Step.JUDGEMENTS:
            verdicts = book.verdicts(planned.iteration).values()
            settled = sum(verdict.left_out or verdict.label is not Label.QUARANTINED for verdict in verdicts)
            return settled, len(judged_pool(book.cache_pool(planned.iteration), planned.iteration, config=config))
        case Step.STUDENT_RESPONSES:
            return done, len(judged_pool(book.cache_pool(planned.iteration), planned.iteration, config=config))
        case Step.CANDIDATES:
            return done, config.loop.new_per_iteration
        case Step.BENCHMARKS:
            return done, sum(len(get_benchmark(name).items()) for name in config.evaluation.benchmarks)
        case Step.PREFLIGHT | Step.TUNING:
            return 0, 0


class JobDesk:
    """What a step of a job works with: real endpoints, and a student in a child process."""

    def __init__(self, book: PostgresBook, pulse: Pulse) -> None:
        self._book = book
        self._pulse = pulse
        # Asked for here and not in `roles`, which is called inside the event loop, where the database may not be asked.
        self._config = replace(book.config, endpoints=durably(lambda: live_endpoints(book.config)))
        self.use_saved = book.job.use_saved
        self.notes: list[str] = []
        self.over_budget = False
        self.config_at_fault = False

    def roles(self) -> AbstractAsyncContextManager[EndpointRoles]:
        return open_roles(
            self._config,
            self._book.calls,
            offline_url=f"http://127.0.0.1:{settings.LIONWEB_OFFLINE_PORT}/v1",
            guard=AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS),
            on_wait=self._pulse.tell,
        )

    def student(self, *, iteration: int, start: Path | None) -> Student:
        config, folder = self._book.config, self._book.checkpoint_folder(iteration)
        child = ChildStudent(config, iteration=iteration, start=start, folder=folder, should_stop=self._cancelled)
        guard = AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS)
        return with_server(config, child, iteration=iteration, start=start, guard=guard, should_stop=self._cancelled)

    def _cancelled(self) -> bool:
        return self._pulse.cancelled

    def held_out(self) -> HeldOut:
        return HeldOut(chain(held_out_items(self._book.config), imported_items(self._book.job.stage.iteration)))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(self._cancellable(work))

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._pulse.tell(" ".join(self.notes))

    async def _cancellable(self, work: Coroutine[Any, Any, None]) -> None:
        """Cancelled once: the work then keeps the answers that are on their way before it ends."""
        task = asyncio.ensure_future(work)
        while not task.done() and not self._pulse.cancelled:
            await asyncio.wait({task}, timeout=0.25)
        if not task.done():
            task.cancel()
        await task


class Pulse:
    """The heartbeat of a running job, in a thread of its own: renews the lease, writes progress, notices stops and lost leases."""

    def __init__(self, job: Job, book: PostgresBook) -> None:
        self._job = job
        self._book = book
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"pulse-{job.pk}", daemon=True)
        self.lost = False
        self.stop_asked = False
        self._note = ""

    def tell(self, note: str) -> None:
        """What the job waits for, from the next beat on; "" for nothing."""
        self._note = note

    @property
    def cancelled(self) -> bool:
        return self.lost or self.stop_asked or shutting_down.is_set()

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(settings.LIONWEB_HEARTBEAT_S):
            try:
                beat = durably(
                    lambda: jobs.heartbeat(self._job, items_done=self._book.items_done, note=self._note), for_s=settings.LIONWEB_LEASE_S
                )
            except Exception:
                # Without a beat the lease runs out, whatever the reason: the work must not go on unheld, beside another worker's.
                logger.exception("job %s lost its heartbeat", self._job.pk)
                self.lost = True
                break
            self.lost, self.stop_asked = not beat.held, beat.held and beat.stop
            if self.lost:  # a job that was asked to stop keeps its lease while it saves what it has
                break
        connection.close()
