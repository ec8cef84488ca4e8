"""What came of a batch: asked for at the provider, stored, told. One code for whoever comes by: a job that waits, or the sweep."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from trainer.batch_api import COMPLETED, FAILED, OVER, BatchApi, Gone, RemoteBatch
from trainer.calls import Batch, Call, Calls, Done, Outcome
from trainer.errors import ResponseFormatError
from trainer.wire import read_reply

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_TURN = 500
TOKEN_BYTES, LINE_BYTES = 8, 4000
"""An answer is not longer than this, with what stands around it. It says how long a file may take to come, no more."""
UNDONE = frozenset({"batch_expired", "batch_cancelled"})
"""Codes of lines that were never come to."""
BUSY = frozenset({408, 409})
"""Of the 4xx, those that say nothing against the request; so does 429."""


class Snatched(Exception):
    """A batch may be in the hands of another process."""


class LetGo(Exception):
    """Work on a batch was given up, for we stop."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A batch that was asked after.

    over: it has ended, and its answers are stored. ends: of the calls that had a line in it; unsaid: keys it should have said something
    of. problem: why nothing came of it as a whole, which is no fault of any call; too_much: a smaller one may fare better.
    """

    over: bool = False
    ends: Sequence[Done] = ()
    unsaid: frozenset[str] = frozenset()
    problem: str = ""
    too_much: bool = False

    @property
    def answered(self) -> bool:
        return any(end.completion is not None for end in self.ends)


class Fetcher:
    """Asks after batches of one endpoint, whoever submitted them, and stores what they answered."""

    def __init__(self, calls: Calls, api: BatchApi, *, thread: Executor) -> None:
        """thread: where the methods of `calls` run."""
        self._calls = calls
        self._api = api
        self._thread = thread
        self._long_work: asyncio.Future[Any] | None = None

    def let_go(self) -> None:
        """Give up a file that is on its way: we stop."""
        if self._long_work is not None:
            self._long_work.cancel()

    async def do(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """A method of `calls`, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **options))

    async def while_ours(self, batch_id: str, work: asyncio.Future[T], *, every_s: float) -> T:
        """Do what takes long, and say meanwhile, every so many seconds, that the batch is in our hands.

        Raises LetGo, and Snatched where that could not be said in time: somebody else may have taken it for one whose worker died.
        """
        self._long_work = work
        try:
            while not work.done():
                began = time.monotonic()
                await asyncio.wait({work}, timeout=every_s)
                still_open = await self.do(self._calls.poll_batch, batch_id, every_s=0)
                if not still_open or time.monotonic() - began > 2 * every_s:
                    raise Snatched
            if work.cancelled():
                raise LetGo
            return work.result()
        finally:
            work.cancel()
            self._long_work = None

    async def fetch(self, batch: Batch, *, every_s: float) -> Fetched | None:
        """Take in a batch that is over; None where somebody else asked after it in the last `every_s` seconds.

        Raises the errors of BatchApi: the batch stays open then, and is asked after again.
        """
        due_s = every_s if batch.remote_id else self._api.lost_s
        if not await self.do(self._calls.poll_batch, batch.id, every_s=due_s):
            return None
        try:
            remote = await self._api.find(batch)
            if remote is None:
                await self.do(self._calls.close_batch, batch.id, state=FAILED, error="It did not arrive at the provider.")
                return Fetched(over=True)
            await self.do(self._calls.update_batch, batch.id, remote_id=remote.id, state="in_progress", done=remote.done)
            return await self._take_in(batch, remote, every_s) if remote.status in OVER else Fetched()
        except (Snatched, LetGo):
            return None
        except Gone as gone:
            await self.do(self._calls.close_batch, batch.id, state=FAILED, error=str(gone), lost=True)
            return Fetched(over=True, problem=str(gone))

    async def _take_in(self, batch: Batch, remote: RemoteBatch, every_s: float) -> Fetched | None:
        """Store the answers, then close the batch. None where another process has done so meanwhile."""
        calls = dict(await self.do(self._calls.batch_requests, batch.id))
        most_bytes = sum(LINE_BYTES + TOKEN_BYTES * call.output_tokens for call in calls.values())
        coming = asyncio.ensure_future(self._api.lines(remote, most_bytes=most_bytes))
        lines = await self.while_ours(batch.id, coming, every_s=max(1.0, every_s / 2))
        ends: list[Done] = []
        for some in slices(lines):
            if not await self.do(self._calls.poll_batch, batch.id, every_s=0):
                return None
            told = list(_ends(some, calls, self._api))
            await self.do(self._calls.turn, self._api.name, told, [])
            ends += told
        await self.do(self._calls.close_batch, batch.id, state=remote.status, error=remote.words)
        return _sum_up(remote, ends, left=calls)


def slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items, so many at a time as one turn should have."""
    for start in range(0, len(items), LARGEST_TURN):
        yield items[start : start + LARGEST_TURN]


def _sum_up(remote: RemoteBatch, ends: Sequence[Done], *, left: Mapping[str, Call]) -> Fetched:
    """left: the calls that had no line."""
    if remote.status == COMPLETED:
        return Fetched(over=True, ends=ends, unsaid=frozenset(left))
    if ends and remote.status != FAILED:
        return Fetched(over=True, ends=ends)
    problem = remote.words or f"A batch ended as {remote.status} without an answer."
    return Fetched(over=True, ends=ends, problem=problem, too_much=True)


def _ends(lines: Iterable[str], left: dict[str, Call], api: BatchApi) -> Iterator[Done]:
    """How the calls of these lines ended, which are taken from `left`.

    Lines that are none of ours, were taken in before, or tell of a call that was not come to are left out.
    """
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            logger.warning("a line of a batch is not JSON: %r", text[:100])
            continue
        call = left.pop(str(line.get("custom_id")), None) if isinstance(line, dict) else None
        if call is not None and _code(line) not in UNDONE:
            yield _end(call, line, api)


def _end(call: Call, line: Mapping[str, Any], api: BatchApi) -> Done:
    response = line.get("response")
    status, body = (response.get("status_code"), response.get("body")) if isinstance(response, Mapping) else (None, None)
    if status == 200:
        try:
            return Done(call=call, outcome=Outcome.ANSWERED, completion=read_reply(call, body, api.config, latency_s=0.0))
        except ResponseFormatError as problem:
            return Done(call=call, outcome=Outcome.UNANSWERED, error=str(problem))
    status = status if isinstance(status, int) else None
    return Done(call=call, outcome=_outcome(status), error=_said(body if status else line, status, api))


def _outcome(status: int | None) -> Outcome:
    if status == 429:
        return Outcome.LIMITED
    refused = status is not None and 400 <= status < 500 and status not in BUSY
    return Outcome.REFUSED if refused else Outcome.FAILED


def _code(line: Mapping[str, Any]) -> Any:
    error = line.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, str) else None


def _said(told: Any, status: int | None, api: BatchApi) -> str:
    """The message of an error, whichever form it has."""
    error = told.get("error") if isinstance(told, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    words = api.clean(str(message or told))[:500]
    return f"HTTP {status} in a batch: {words}" if status else words
