"""Calls by OpenAI's Batch API: half the price, within a day, outside the rate limits.

Calls are gathered, permitted by turns as any other (trainer.calls), and handed over together. A batch is written down before anything is
sent and carries our id as metadata, so that whoever comes by, another process or a later life of this one, finds it at the provider
and stores its answers: a batch outlives the worker that submitted it, and is not submitted twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from trainer.api_errors import explain
from trainer.calls import Batch, Call, Calls, Done, Outcome, Turn
from trainer.config import EndpointConfig
from trainer.errors import BudgetSpent, ConfigError, ResponseFormatError, TeacherUnavailable
from trainer.records import Completion
from trainer.text import storable
from trainer.wire import body_of, read_reply

if TYPE_CHECKING:
    import openai
    from openai.types import Batch as RemoteBatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_TURN = 500
LATEST = 1000
"""So many of the provider's batches, the newest first, are looked through for one whose id was lost."""

OUR_ID = "lionweb_batch"
FAILED = "failed"
OVER = frozenset({"completed", FAILED, "expired", "cancelled"})
PASSING = frozenset({408, 409, 429})
"""Of the 4xx, those that say nothing against the request."""


@dataclass
class _Wish:
    """A call that somebody waits for. failures: batches that ended without its answer; words: what the last one said of it."""

    call: Call
    future: asyncio.Future[Completion]
    failures: int = 0
    words: str = ""


class BatchDesk:
    """Answers calls by batches, from `start` to `stop`, in one asyncio task of its own."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        calls: Calls,
        client: openai.AsyncOpenAI,
        *,
        thread: Executor,
        poll_s: float = 30.0,
        quiet_s: float = 1.0,
        largest: int = 20_000,
    ) -> None:
        """thread: where the methods of `calls` run. poll_s: how often a batch is asked after. A batch is handed over when no call came
        for quiet_s, or `largest` are there.
        """
        self._name = name
        self._retries = config.retries
        self._calls = calls
        self._config = config
        self._provider = _Provider(name, config, client)
        self._thread = thread
        self._poll_s = poll_s
        self._quiet_s = quiet_s
        self._largest = largest
        self._wishes: dict[str, _Wish] = {}
        self._fresh: set[str] = set()
        self._poll_at = 0.0
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Whoever waits gets CancelledError. What was submitted stays so; a batch that is on its way there is seen off first."""
        self._stopping = True
        for wish in self._wishes.values():
            wish.future.cancel()
        self._wishes.clear()
        self._wake.set()
        if self._task is not None:
            await self._task

    async def answer(self, call: Call) -> Completion:
        """The answer to a call that was made with `call_of(..., batch=True)`, in minutes or hours.

        Raises BudgetSpent, ConfigError (no such API, or no access), ResponseFormatError (no batch could answer it).
        """
        if self._stopping:
            raise asyncio.CancelledError
        if call.key not in self._wishes:
            self._wishes[call.key] = _Wish(call, asyncio.get_running_loop().create_future())
            self._fresh.add(call.key)
            self._wake.set()
        return await asyncio.shield(self._wishes[call.key].future)

    # Rounds

    async def _work(self) -> None:
        while not self._stopping:
            await self._something_to_do()
            try:
                await self._round()
            except TeacherUnavailable as problem:
                logger.warning("batches are asked for again in %g s: %s", self._poll_s, problem)
            except Exception as error:  # reaches everybody who waits: they are the edge where it can be told
                self._reject(list(self._wishes), error)

    async def _something_to_do(self) -> None:
        """Returns when enough calls have gathered, or none came for a while, or batches are due to be asked after, or we stop."""
        gathering = bool(self._fresh)
        while not self._stopping and len(self._fresh) < self._largest:
            self._wake.clear()
            left_s = max(0.0, self._poll_at - time.monotonic())
            try:
                await asyncio.wait_for(self._wake.wait(), min(left_s, self._quiet_s) if gathering else left_s)
            except TimeoutError:
                return
            gathering = True

    async def _round(self) -> None:
        """Take in what has ended, where that is due, and hand over what is wanted."""
        keys = list(self._fresh)
        if time.monotonic() >= self._poll_at:
            keys = await self._fetch_all()
        self._fresh = set(keys[self._largest :])
        permitted = await self._ask([self._wishes[key].call for key in keys[: self._largest] if key in self._wishes])
        if permitted:
            await self._hand_over(permitted)

    async def _turn(self, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        return await self._in_thread(self._calls.turn, self._name, done, wanted)

    async def _in_thread(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **options))

    # Out

    async def _ask(self, wanted: Sequence[Call]) -> list[Call]:
        """Answer what is stored, and give what may be called now. The rest waits for a batch, or a call, of somebody else."""
        permitted: list[Call] = []
        for some in _slices(wanted):
            turn = await self._turn([], some)
            for key, completion in turn.found.items():
                self._resolve(key, completion)
            permitted += [call for call in some if call.key in turn.permitted]
            if turn.refused:
                self._reject([call.key for call in some if call.key not in turn.permitted], BudgetSpent(turn.refused))
        return await self._still_wanted(permitted)

    async def _still_wanted(self, permitted: Sequence[Call]) -> list[Call]:
        """Those that somebody still waits for; the others' permission is given back."""
        dropped = [Done(call=call, outcome=Outcome.REFUSED) for call in permitted if call.key not in self._wishes]
        if dropped:
            await self._turn(dropped, [])
        return [call for call in permitted if call.key in self._wishes]

    async def _hand_over(self, calls: Sequence[Call]) -> None:
        """Submit a batch. Where it may or may not have arrived, it stays open until it is looked for at the provider."""
        batch = Batch(id=uuid4().hex, keys=frozenset(call.key for call in calls))
        await self._in_thread(self._calls.open_batch, self._name, batch.id, list(batch.keys))
        if not await self._in_thread(self._calls.poll_batch, batch.id, every_s=self._provider.lost_s):
            return  # another process took it for one whose worker died, and gives its calls back
        try:
            remote_id = await self._provider.submit(batch.id, calls)
        except ConfigError as problem:
            await self._in_thread(self._calls.close_batch, batch.id, state=FAILED, error=str(problem))
            raise
        except ResponseFormatError as problem:
            await self._close(batch, FAILED, str(problem))
            return
        await self._in_thread(self._calls.update_batch, batch.id, remote_id=remote_id, state="in_progress")

    # In

    async def _fetch_all(self) -> list[str]:
        """Ask after all open batches of the endpoint, whoever submitted them. Gives the keys that may be asked for now."""
        held: set[str] = set()
        try:
            for batch in await self._in_thread(self._calls.batches, self._name):
                if self._stopping or not await self._fetch(batch):
                    held |= batch.keys
        finally:
            self._poll_at = time.monotonic() + self._poll_s
        return [key for key in self._wishes if key not in held]

    async def _fetch(self, batch: Batch) -> bool:
        """Whether the batch has ended and its results are in: what it left undone may be asked for at once, after a failure later."""
        every_s = self._poll_s if batch.remote_id else self._provider.lost_s
        if not await self._in_thread(self._calls.poll_batch, batch.id, every_s=every_s):
            return False
        try:
            remote = await self._provider.find(batch)
            if remote is None:
                await self._in_thread(self._calls.close_batch, batch.id, state=FAILED, error="It did not arrive at the provider.")
                return False
            return await self._take_up(batch, remote)
        except _Gone as gone:
            await self._close(batch, FAILED, str(gone))
            return False

    async def _take_up(self, batch: Batch, remote: RemoteBatch) -> bool:
        counts = remote.request_counts
        done = counts.completed + counts.failed if counts else None
        await self._in_thread(self._calls.update_batch, batch.id, remote_id=remote.id, state="in_progress", done=done)
        if remote.status not in OVER or not await self._keep_results(batch, await self._provider.lines(remote)):
            return False
        await self._close(batch, remote.status, _whole_problem(remote))
        return remote.status != FAILED

    async def _keep_results(self, batch: Batch, lines: Sequence[str]) -> bool:
        """Store the answers; False where another process has closed the batch meanwhile."""
        calls = await self._in_thread(self._calls.batch_requests, batch.id)
        for some in _slices(lines):
            if not await self._in_thread(self._calls.poll_batch, batch.id, every_s=0):  # ours for another poll_s
                return False
            ends = list(_ends(some, calls, self._config))
            await self._turn(ends, [])
            for end in ends:
                self._tell(end)
        return True

    async def _close(self, batch: Batch, state: str, error: str) -> None:
        """What it has not answered has failed once more; after so many times, whoever waits is told."""
        await self._in_thread(self._calls.close_batch, batch.id, state=state, error=error)
        for key in batch.keys & self._wishes.keys():
            wish = self._wishes[key]
            wish.failures += 1
            wish.words = error or wish.words or f"The batch ended as {state} without it."
            if wish.failures > self._retries:
                self._reject([key], ResponseFormatError(f"No answer after {wish.failures} batches. The last one: {wish.words}"))

    # Whoever waits

    def _tell(self, end: Done) -> None:
        key = end.call.key
        if end.completion is not None:
            self._resolve(key, end.completion)
        elif end.outcome is Outcome.REFUSED:
            self._reject([key], ResponseFormatError(end.error))
        elif key in self._wishes:
            self._wishes[key].words = end.error

    def _resolve(self, key: str, completion: Completion) -> None:
        wish = self._wishes.pop(key, None)
        if wish is not None:
            wish.future.set_result(completion)

    def _reject(self, keys: Iterable[str], error: Exception) -> None:
        for key in keys:
            wish = self._wishes.pop(key, None)
            if wish is not None:
                wish.future.set_exception(error)


class _Gone(Exception):
    """The provider knows nothing of this batch, or has deleted its answers."""


class _Provider:
    """The Batch API of an endpoint. Raises ConfigError, TeacherUnavailable and ResponseFormatError as `explain` has them."""

    def __init__(self, name: str, config: EndpointConfig, client: openai.AsyncOpenAI) -> None:
        self._name = name
        self._config = config
        self._client = client

    @property
    def lost_s(self) -> float:
        """So long after it was begun, a submission is over: it arrived, or never will. Twice what `submit` may take."""
        return 2 * self._config.timeout_s

    async def submit(self, batch_id: str, calls: Sequence[Call]) -> str:
        """Hand over a batch within the endpoint's timeout; gives the provider's id."""
        lines = [_line(call, self._config) for call in calls]
        try:
            with self._explained():
                async with asyncio.timeout(self._config.timeout_s):
                    return await self._submit(batch_id, "".join(lines).encode("utf-8", "replace"))
        except TimeoutError:
            raise TeacherUnavailable(f"Endpoint {self._name!r} did not take a batch within {self._config.timeout_s:g} s.") from None

    async def _submit(self, batch_id: str, content: bytes) -> str:
        from openai.types import FileObject

        file = await self._client.files.create(file=(f"{batch_id}.jsonl", content), purpose="batch")
        if not isinstance(file, FileObject):  # the client hands on whatever is no JSON
            raise ConfigError(f"Endpoint {self._name!r} has no Batch API at {self._client.base_url}. Switch off 'Offers the Batch API'.")
        made = await self._client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={OUR_ID: batch_id}
        )
        return made.id

    async def find(self, batch: Batch) -> RemoteBatch | None:
        """The batch as the provider has it; None where it never arrived. Raises _Gone."""
        with self._explained():
            return await self._retrieve(batch.remote_id) if batch.remote_id else await self._look_for(batch.id)

    async def _retrieve(self, remote_id: str) -> RemoteBatch:
        import openai

        try:
            return await self._client.batches.retrieve(remote_id)
        except openai.NotFoundError as error:
            raise _Gone(f"The provider does not know batch {remote_id}: {storable(error.message)}") from error

    async def _look_for(self, batch_id: str) -> RemoteBatch | None:
        looked_at = 0
        async for remote in self._client.batches.list(limit=100):
            if (remote.metadata or {}).get(OUR_ID) == batch_id:
                return remote
            looked_at += 1
            if looked_at == LATEST:
                break
        return None

    async def lines(self, remote: RemoteBatch) -> list[str]:
        """The lines of the files of a batch that is over, answers and errors. Raises _Gone."""
        import openai

        lines: list[str] = []
        with self._explained():
            for file_id in filter(None, [remote.output_file_id, remote.error_file_id]):
                try:
                    content = await self._client.files.content(file_id)
                except openai.NotFoundError as error:
                    raise _Gone(f"The provider has deleted file {file_id} of batch {remote.id}: {storable(error.message)}") from error
                lines += content.content.decode("utf-8", "replace").split("\n")
        return [line for line in lines if line.strip()]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.APIError as error:
            raise explain(self._name, str(self._client.base_url), self._config, error) from error


def _line(call: Call, config: EndpointConfig) -> str:
    line = {"custom_id": call.key, "method": "POST", "url": "/v1/chat/completions", "body": body_of(call.request, config)}
    return json.dumps(line, separators=(",", ":")) + "\n"


def _ends(lines: Iterable[str], calls: Mapping[str, Call], config: EndpointConfig) -> Iterator[Done]:
    """How the calls of these lines ended; lines that are none of ours, or were taken in before, are left out."""
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            logger.warning("a line of a batch is not JSON: %r", text[:100])
            continue
        call = calls.get(str(line.get("custom_id"))) if isinstance(line, dict) else None
        if call is not None:
            yield _end(call, line, config)


def _end(call: Call, line: Mapping[str, Any], config: EndpointConfig) -> Done:
    response = line.get("response")
    status, body = (response.get("status_code"), response.get("body")) if isinstance(response, Mapping) else (None, None)
    if status == 200:
        try:
            return Done(call=call, outcome=Outcome.ANSWERED, completion=read_reply(call, body, config, latency_s=0.0))
        except ResponseFormatError as problem:
            return Done(call=call, outcome=Outcome.UNANSWERED, error=str(problem))
    refused = isinstance(status, int) and 400 <= status < 500 and status not in PASSING
    outcome = Outcome.REFUSED if refused else Outcome.FAILED
    return Done(call=call, outcome=outcome, error=_said(body if status else line, status))


def _said(told: Any, status: int | None) -> str:
    """The message of an error, whichever form it has."""
    error = told.get("error") if isinstance(told, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    words = storable(str(message or told))[:500]
    return f"HTTP {status} in a batch: {words}" if status else words


def _whole_problem(remote: RemoteBatch) -> str:
    """What the provider says against a batch as a whole, "" where nothing."""
    problems = (remote.errors.data if remote.errors else None) or []
    return storable(" ".join(problem.message for problem in problems if problem.message))[:2000]


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), LARGEST_TURN):
        yield items[start : start + LARGEST_TURN]
