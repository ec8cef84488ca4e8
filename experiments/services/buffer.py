"""Rows that come many a second, written a few statements at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Row = TypeVar("Row")


class Buffer(Generic[Row]):
    """Keeps rows and writes them together: on `flush`, and by itself at most `every_s` seconds after the first of them came.

    `write` gets them in the order they came, on the executor or in the thread that flushes, never in both at once. Where it fails
    the rows stay, and the next `flush` tries again and raises its error.
    """

    def __init__(self, write: Callable[[Sequence[Row]], None], *, executor: Executor, every_s: float = 1.0) -> None:
        self._write = write
        self._executor = executor
        self._every_s = every_s
        self._rows: list[Row] = []
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows.append(row)
            if self._timer is None:
                self._timer = threading.Timer(self._every_s, self._due)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what is there now. Raises what `write` raises; nothing is lost then."""
        with self._writing:
            with self._lock:
                rows = list(self._rows)
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            if rows:
                self._write(rows)
            with self._lock:
                del self._rows[: len(rows)]

    def _due(self) -> None:
        with suppress(RuntimeError):  # the executor has just ended: its owner flushed before
            self._executor.submit(self._flush_by_itself)

    def _flush_by_itself(self) -> None:
        try:
            self.flush()
        except Exception:  # the next flush raises it to somebody who can act
            logger.warning("%s rows could not be written yet", len(self._rows), exc_info=True)
