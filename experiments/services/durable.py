"""Work on the database that outlives a restart of Postgres."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, close_old_connections, connection

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def durably(work: Callable[[], T], *, for_s: float = 60.0) -> T:
    """Do some work on the database; where the connection is lost, wait and do it again, for at most `for_s` seconds.

    The work must be safe to repeat: it is done in one transaction, or adds only rows that are not there yet.
    """
    end = time.monotonic() + for_s
    wait = 0.1
    while True:
        try:
            close_old_connections()
            return work()
        except (OperationalError, InterfaceError) as error:
            if connection.in_atomic_block or time.monotonic() + wait > end:
                raise
            logger.warning("the database is away (%s); trying again in %.1f s", str(error).strip().partition("\n")[0], wait)
            connection.close()
            time.sleep(wait * random.uniform(0.8, 1.2))
            wait = min(wait * 2, 2.0)


def durable(work: Callable[P, T]) -> Callable[P, T]:
    """The same work, done durably."""

    @wraps(work)
    def doing(*args: P.args, **kwargs: P.kwargs) -> T:
        return durably(lambda: work(*args, **kwargs))

    return doing
