"""Run, iteration and job ids in every log record written while a job is at work."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus

_ids: ContextVar[dict[str, object] | None] = ContextVar("log_ids", default=None)


@contextmanager
def log_ids(**ids: object) -> Iterator[None]:
    """Adds ids to the records of this thread: `with log_ids(run=3, job=14): ...`. Nested ones add up."""
    token = _ids.set({**(_ids.get() or {}), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


class AddIds(logging.Filter):
    """Gives each record an `ids` text such as `[run=3 job=14] `, empty outside a job."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = _ids.get()
        record.ids = f"[{' '.join(f'{name}={value}' for name, value in ids.items())}] " if ids else ""
        return True


class RefusalsInOneLine(logging.Filter):
    """Takes the traceback off a 403: who asked for what is not for their role is no fault of the code."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "status_code", None) == HTTPStatus.FORBIDDEN:
            record.exc_info = None
        return True
