"""What came of a batch: asked for at the provider, stored, told. One code for whoever comes by: a job that waits, or the sweep."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from trainer.batch_api import COMPLETED, FAILED, OVER, BatchApi, Gone, RemoteBatch
from trainer.calls import Batch, Call, Calls, Done, Outcome
from trainer.errors import ResponseFormatError, TrainerError
from trainer.wire import read_reply

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_TURN = 500
TOKEN_BYTES, LINE_BYTES = 8, 4000
"""An answer is not longer than this, with what stands around it. It says how long a file may take to come, no more."""
UNDONE = frozenset({"batch_expired", "batch_cancelled"})
"""Codes of lines that were never come to."""
UNSAID = "The batch was completed without a word of it that can be read."
BUSY = frozenset({408, 409})
"""Of the 4xx, those that say nothing against the request; so does 429."""


class Snatched(Exception):
    """A batch may be in the hands of another process."""


class LetGo(Exception):
    """Work on a batch was given up, for we stop."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came of asking after a batch.

    over: it has ended, and what can be had of it is stored. ends: of its calls, stored by this very look. trouble: why it, or the rest of
    it, could not be read; it stays open then, and what was read is kept. problem: why nothing came of it as a whole, which is no fault
    of any call; too_much: a smaller one may fare better.
    """

    over: bool = False
    ends: Sequence[Done] = ()
    trouble: TrainerError | None = None
    problem: str = ""
    too_much: bool = False

    @property
    def answered(self) -> bool:
        return any(end.completion is not None for end in self.ends)


class Missing:
    """Since when batches, or files of theirs, are not there, as their provider says.

    Storage lags, gateways err, keys of two projects are mixed up: a batch is given up only after it was missed for long.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: dict[str, float] = {}

    def is_gone(self, batch_id: str) -> bool:
        """Whether a batch that is missed now has been so for longer than our patience; never at the first sight."""
        now = time.monotonic()
        since = self._since.setdefault(batch_id, now)
        return since < now - self._patience_s

    def forget(self, batch_id: str) -> None:
        self._since.pop(batch_id, None)

    def keep_only(self, batch_ids: Collection[str]) -> None:
        self._since = {batch_id: since for batch_id, since in self._since.items() if batch_id in batch_ids}


class Fetcher:
    """Asks after batches of one endpoint, whoever submitted them, and stores what they answered."""

    def __init__(self, calls: Calls, api: BatchApi, *, thread: Executor, missing: Missing) -> None:
        """thread: where the methods of `calls` run. missing: remembers from one look to the next."""
        self._calls = calls
        self._api = api
        self._thread = thread
        self._missing = missing
        self._long_work: asyncio.Future[Any] | None = None
        self._stopping = False

    def let_go(self) -> None:
        """We stop: give up the file that is on its way, and begin no other."""
        self._stopping = True
        if self._long_work is not None:
            self._long_work.cancel()

    async def do(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """A method of `calls`, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **options))

    async def while_ours(self, batch_id: str, work: Coroutine[Any, Any, T], *, every_s: float) -> T:
        """Do what takes long, and say meanwhile, every so many seconds, that the batch is in our hands.

        Raises LetGo, and Snatched where that could not be said in time: somebody else may have taken it for one whose worker died.
        """
        if self._stopping:
            work.close()
            raise LetGo
        self._long_work = doing = asyncio.ensure_future(work)
        try:
            while not doing.done():
                began = time.monotonic()
                await asyncio.wait({doing}, timeout=every_s)
                still_open = await self.do(self._calls.poll_batch, batch_id, every_s=0)
                if not still_open or time.monotonic() - began > 2 * every_s:
                    raise Snatched
            if doing.cancelled():
                raise LetGo
            return doing.result()
        finally:
            doing.cancel()
            self._long_work = None

    async def fetch(self, batch: Batch, *, every_s: float) -> Fetched | None:
        """Ask after a batch, and store what it answered if it is over; None where others do so, or did in the last `every_s` seconds."""
        due_s = every_s if batch.remote_id else self._api.lost_s
        if not await self.do(self._calls.poll_batch, batch.id, every_s=due_s):
            return None
        try:
            fetched = await self._look_at(batch, every_s)
        except (Snatched, LetGo):
            return None
        except TrainerError as trouble:
            fetched = Fetched(trouble=trouble)
        if isinstance(fetched.trouble, Gone):
            return await self._miss(batch, fetched)
        if fetched.trouble is None:
            self._missing.forget(batch.id)
        return fetched

    async def _look_at(self, batch: Batch, every_s: float) -> Fetched:
        """Raises the errors of BatchApi, LetGo and Snatched."""
        remote = await self._api.find(batch)
        if remote is None:
            await self.do(self._calls.close_batch, batch.id, state=FAILED, error="It did not arrive at the provider.")
            return Fetched(over=True)
        await self.do(self._calls.update_batch, batch.id, remote_id=remote.id, state="in_progress", done=remote.done)
        return await self._store(batch, remote, every_s) if remote.status in OVER else Fetched()

    async def _miss(self, batch: Batch, fetched: Fetched) -> Fetched:
        """A batch that is not there stays open, until it has been missed for too long."""
        if not self._missing.is_gone(batch.id):
            return fetched
        self._missing.forget(batch.id)
        problem = str(fetched.trouble)
        await self.do(self._calls.close_batch, batch.id, state=FAILED, error=problem, lost=True)
        return Fetched(over=True, ends=fetched.ends, problem=problem)

    async def _store(self, batch: Batch, remote: RemoteBatch, every_s: float) -> Fetched:
        """Store what each of its files says, whatever becomes of the other; close the batch where all of them could be read."""
        left = dict(await self.do(self._calls.batch_requests, batch.id))
        most_bytes = sum(LINE_BYTES + TOKEN_BYTES * call.output_tokens for call in left.values())
        ends: list[Done] = []
        trouble: TrainerError | None = None
        if remote.status == COMPLETED and left and not remote.file_ids:
            trouble = Gone(f"The provider names no file of answers of batch {remote.id}.")
        for file_id in remote.file_ids:
            coming = self._api.lines(remote, file_id, most_bytes=most_bytes)
            try:
                lines = await self.while_ours(batch.id, coming, every_s=max(1.0, every_s / 2))
            except TrainerError as error:
                trouble = trouble or error
            else:
                ends += await self._keep(batch, _ends(lines, left, self._api))
        if trouble is not None:
            return Fetched(ends=ends, trouble=trouble)
        if remote.status == COMPLETED:
            ends += await self._keep(batch, _unsaid(left))
        await self.do(self._calls.close_batch, batch.id, state=remote.status, error=remote.words)
        return _sum_up(remote, ends)

    async def _keep(self, batch: Batch, ends: Iterator[Done]) -> list[Done]:
        """Store them, in turns. Raises Snatched where another process has done so meanwhile."""
        kept: list[Done] = []
        for some in slices(list(ends)):
            if not await self.do(self._calls.poll_batch, batch.id, every_s=0):
                raise Snatched
            await self.do(self._calls.turn, self._api.name, some, [])
            kept += some
        return kept


def _sum_up(remote: RemoteBatch, ends: Sequence[Done]) -> Fetched:
    if remote.status == COMPLETED or (ends and remote.status != FAILED):
        return Fetched(over=True, ends=ends)
    problem = remote.words or f"A batch ended as {remote.status} without an answer."
    return Fetched(over=True, ends=ends, problem=problem, too_much=True)


def _unsaid(left: Mapping[str, Call]) -> Iterator[Done]:
    """The ends of calls that a completed batch has no readable line of: they may have been made, and paid."""
    return (Done(call=call, outcome=Outcome.UNANSWERED, error=UNSAID) for call in left.values())


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
    if status is None and not line.get("error"):
        return Done(call=call, outcome=Outcome.UNANSWERED, error=UNSAID)
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


def slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items, so many at a time as a turn may have."""
    return (items[at : at + LARGEST_TURN] for at in range(0, len(items), LARGEST_TURN))
