"""Batches that no running job asks after: the sweep fetches them, so that their answers are there and the budgets they hold come free.

A batch outlives the run that was stopped meanwhile. It is asked after by the same code as in a job (trainer.batch_results), through the
same guard, with the endpoint's settings as they are now, and with the keys in the environment of the process that sweeps.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connection
from django.db.models import QuerySet
from django.db.models.functions import Coalesce, Now

from experiments.models import Batch, Endpoint, Job, LedgerLine
from experiments.services.calls import OPEN_BATCHES, PostgresCalls
from experiments.services.endpoints import live_endpoints
from trainer import calls
from trainer.addresses import AddressGuard
from trainer.batch_api import open_batch_api
from trainer.batch_mode import PATIENCE_S, POLL_S
from trainer.batch_results import Fetcher, Missing
from trainer.config import OFFLINE_URL, EndpointConfig, RunConfig
from trainer.errors import ConfigError, TrainerError

logger = logging.getLogger(__name__)

UNHEARD_S = 3 * POLL_S
"""A job asks more often than this: so long without a question, and there is none."""
LOOK_EVERY_S = 10.0

_missing = Missing(PATIENCE_S)
_told: dict[str, str] = {}
"""What was last said of a batch: the same trouble is told once."""


def fetch_until(stop: threading.Event) -> None:
    """Fetch what is due, again and again: in a thread of its own, for a file of answers may take minutes to come."""
    while not stop.is_set():
        close_old_connections()
        try:
            fetch_due()
        except (OperationalError, InterfaceError) as error:
            logger.warning("No batches were asked after this time: %s", error)
        except Exception:  # the outer edge: a sweep whose thread is dead would not be missed
            logger.exception("no batches were asked after this time")
        stop.wait(LOOK_EVERY_S)
    connection.close()


def fetch_due() -> int:
    """Ask after every open batch that nobody asked after for a while. Gives how many of them were over and are stored now."""
    _forget_others(set(Batch.objects.filter(state__in=OPEN_BATCHES).values_list("pk", flat=True)))
    return sum(_fetch(row) for row in _unheard_of())


def _forget_others(open_batches: set[str]) -> None:
    _missing.keep_only(open_batches)
    for batch_id in _told.keys() - open_batches:
        del _told[batch_id]


def _unheard_of() -> QuerySet[Batch]:
    last = Coalesce("polled_at", "created_at")
    rows = Batch.objects.filter(state__in=OPEN_BATCHES).annotate(last=last)
    return rows.filter(last__lt=Now() - timedelta(seconds=UNHEARD_S)).select_related("pace", "line__run", "line__iteration")


def _fetch(row: Batch) -> bool:
    """Whether the batch was over. What goes wrong with one is told in the log, and the others are fetched all the same."""
    name = row.line.endpoint
    try:
        config = _config(row)
        key_env = row.pace.key_env
        if key_env and not os.environ.get(key_env):
            _tell(row, f"Batches of endpoint {name} wait for the next job: {key_env} is not set where the sweep runs.")
            return False
        return asyncio.run(_ask(row, config, PostgresCalls(config, job=_asker(row.line))))
    except TrainerError as problem:
        _tell(row, f"Batch {row.pk} cannot be asked after: {problem}")
    except (OperationalError, InterfaceError):
        raise
    except Exception:  # the outer edge: one batch must not keep the others from being fetched
        logger.exception("batch %s cannot be asked after", row.pk)
    return False


async def _ask(row: Batch, config: RunConfig, kept: PostgresCalls) -> bool:
    name = row.line.endpoint
    endpoint = config.endpoints[name]
    offline = endpoint.base_url == OFFLINE_URL
    url = f"http://127.0.0.1:{settings.LIONWEB_OFFLINE_PORT}/v1" if offline else endpoint.base_url
    guard = None if offline else AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS)
    with ThreadPoolExecutor(1, thread_name_prefix="batch-polls") as thread:
        try:
            async with open_batch_api(name, endpoint, url=url, guard=guard) as api:
                batch = calls.Batch(id=row.pk, remote_id=row.remote_id, keys=frozenset())
                fetched = await Fetcher(kept, api, thread=thread, missing=_missing).fetch(batch, every_s=UNHEARD_S)
        finally:
            thread.submit(kept.close).result()
    if fetched is None:
        return False
    if fetched.trouble is not None:
        _tell(row, f"Batch {row.pk} cannot be asked after: {fetched.trouble}")
    else:
        _told.pop(row.pk, None)  # trouble that comes back is told again
    return fetched.over


def _config(row: Batch) -> RunConfig:
    """The config of the batch's run, with its endpoints as they are now; where the run was deleted, the endpoint alone.

    The server, model and key are those that the batch was handed over with, whatever the endpoint has become since.
    Raises ConfigError where the endpoint is gone.
    """
    name, run = row.line.endpoint, row.line.run
    config = run.run_config() if run is not None else RunConfig(endpoints=_endpoint_alone(name))
    endpoints = live_endpoints(config)
    there = replace(endpoints[name], base_url=row.pace.base_url, model=row.pace.model, key_env=row.pace.key_env)
    return replace(config, endpoints={**endpoints, name: there})


def _endpoint_alone(name: str) -> dict[str, EndpointConfig]:
    endpoint = Endpoint.objects.filter(name=name).first()
    if endpoint is None:
        raise ConfigError(f"Its run and its endpoint {name} were both deleted. Make the endpoint again to have its answers.")
    return {name: endpoint.config()}


def _asker(line: LedgerLine) -> Job | None:
    """The latest job of the stage that asked for the batch: what it costs is counted there."""
    return Job.objects.filter(stage__iteration=line.iteration, stage__name=line.stage).select_related("stage__iteration").last()


def _tell(row: Batch, words: str) -> None:
    if _told.get(row.pk) != words:
        _told[row.pk] = words
        logger.warning("%s", words)
