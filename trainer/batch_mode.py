"""Calls by OpenAI's Batch API: half the price, within a day, outside the rate limits.

Calls are gathered, permitted by turns as any other (trainer.calls), and handed over together. A batch is written down before anything is
sent and carries our id as metadata, so that whoever comes by, another process or a later life of this one, finds it at the provider
and stores its answers: a batch outlives the worker that submitted it, and is not submitted twice.

Only a line of a batch speaks against its call. A batch that comes to nothing as a whole is the endpoint's affair: it is waited for, with
smaller batches where that may help, and in the end the stage stops with all its calls as they were.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from trainer.batch_api import FAILED, MOST_BYTES, BatchApi, Gone, is_too_much, line_of
from trainer.batch_results import Fetched, Fetcher, LetGo, Missing, Snatched, slices
from trainer.calls import Batch, Call, Calls, Done, Outcome, Turn
from trainer.config import EndpointConfig
from trainer.errors import BudgetSpent, ConfigError, RequestRefused, ResponseFormatError, TeacherUnavailable, TrainerError
from trainer.records import Completion

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

POLL_S = 30.0
"""How often a batch is asked after."""
PATIENCE_S = 6 * 3600.0
"""So long an endpoint may take no batch, or answer none, before whoever waits is told."""
MOST_DOUBLINGS = 6
FAILED_LINES = 20
"""So many calls that failed by their own lines, with no answer among them, and it is the endpoint that is at fault."""


@dataclass
class _Wish:
    """A call that somebody waits for. size: of its line, in bytes; failures: of its line, in one batch after another."""

    call: Call
    future: asyncio.Future[Completion]
    size: int
    failures: int = 0


class _Setbacks:
    """What went wrong through the endpoint's fault, one after another: when to try again, and how long this has been going on.

    It is in one of three states: clear (no setback, from the start and after `clear`), waiting (from a setback, or a batch that went out
    after one, until `until`), trying (after that, until the next setback). What is added while a setback is waited for is the same one.
    """

    def __init__(self, first_s: float) -> None:
        """first_s: the first wait; each one is twice as long as that before, up to 64 times, and somewhat at random."""
        self._first_s = first_s
        self._count = 0
        self._began_at = 0.0
        self._same_until = 0.0
        self.until = 0.0
        self.words = ""

    def add(self, words: str) -> bool:
        """False where one is being waited for already: the same trouble, seen at several batches."""
        now = time.monotonic()
        if now < self._same_until:
            return False
        self._began_at = self._began_at if self._count else now
        self._count += 1
        self.wait()
        self._same_until = self.until
        self.words = f"{words} It is tried again in about {_duration(self.until - now)}."
        return True

    def wait(self) -> None:
        """While there is trouble, one batch at a time goes out, with a wait after each."""
        if self._count:
            wait_s = self._first_s * 2 ** min(self._count - 1, MOST_DOUBLINGS)
            self.until = time.monotonic() + wait_s * random.uniform(0.75, 1.25)

    def last_for(self, seconds: float) -> bool:
        return self._count > 0 and time.monotonic() - self._began_at > seconds

    def clear(self) -> None:
        self._count, self._same_until, self.until, self.words = 0, 0.0, 0.0, ""


class BatchDesk:
    """Answers calls by batches, from `start` to `stop`, in one asyncio task of its own."""

    def __init__(
        self,
        name: str,
        settings: Callable[[], EndpointConfig],
        calls: Calls,
        client: openai.AsyncOpenAI,
        *,
        thread: Executor,
        on_pause: Callable[[str], None] = lambda text: None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        poll_s: float = POLL_S,
        quiet_s: float = 1.0,
        patience_s: float = PATIENCE_S,
        largest: int = 20_000,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """settings: of the endpoint as they are now; calls are settled by the same prices as they are held. thread: where the methods of
        `calls` run. on_pause: told why batches are waited for, and "" when they are not any more. on_turn: told what came of each turn
        that calls were asked for in, and with it the settings that go for them.

        A batch is handed over when no call came for quiet_s, or `largest` are there; most_bytes: of its file.
        """
        self._name = name
        self._calls = calls
        self._api = BatchApi(name, settings, client)
        self._fetcher = Fetcher(calls, self._api, thread=thread, missing=Missing(patience_s))
        self._do = self._fetcher.do
        self._on_pause = on_pause
        self._on_turn = on_turn
        self._poll_s = poll_s
        self._quiet_s = quiet_s
        self._patience_s = patience_s
        self._largest = self._most = largest
        self._most_bytes = most_bytes
        self._wishes: dict[str, _Wish] = {}
        self._fresh: dict[str, None] = {}
        self._last_came = 0.0
        self._poll_at = 0.0
        self._under_way = False
        self._not_taken = _Setbacks(poll_s)
        self._not_answered = _Setbacks(poll_s)
        self._unread: dict[str, _Setbacks] = {}
        self._failed_lines: set[str] = set()
        self._pause = ""
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Whoever waits gets CancelledError. What was submitted stays so; a file that is on its way is not waited for."""
        self._stopping = True
        for wish in self._wishes.values():
            wish.future.cancel()
        self._wishes.clear()
        self._fresh.clear()
        self._wake.set()
        self._fetcher.let_go()
        if self._task is not None:
            await self._task

    async def answer(self, call: Call) -> Completion:
        """The answer to a call that was made with `call_of(..., batch=True)`, in minutes or hours.

        Raises BudgetSpent, ConfigError (no such API, or no access), ResponseFormatError (no line of a batch could answer it),
        TeacherUnavailable (batches came to nothing for too long).
        """
        if self._stopping:
            raise asyncio.CancelledError
        if call.key not in self._wishes:
            size = len(line_of(call, self._api.config).encode("utf-8", "replace"))
            self._wishes[call.key] = _Wish(call, asyncio.get_running_loop().create_future(), size)
            self._fresh[call.key] = None
            self._last_came = time.monotonic()
            self._wake.set()
        return await asyncio.shield(self._wishes[call.key].future)

    # Rounds

    async def _work(self) -> None:
        while not self._stopping:
            try:
                await self._something_to_do()
                await self._round()
            except Exception as error:  # reaches everybody who waits: they are the edge where it can be told
                self._reject(list(self._wishes), error)

    async def _something_to_do(self) -> None:
        """Returns when a batch can be handed over, or batches are due to be asked after, or we stop."""
        while not self._stopping and (left_s := min(self._poll_at, self._hand_over_at) - time.monotonic()) > 0:
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), left_s)
            except TimeoutError:
                return

    @property
    def _hand_over_at(self) -> float:
        """When enough calls have gathered, or none came for a while; not while the endpoint is given time."""
        if not self._fresh:
            return math.inf
        gathered_at = self._last_came + (self._quiet_s if len(self._fresh) < self._most else 0.0)
        return max(gathered_at, self._not_taken.until, self._not_answered.until)

    async def _round(self) -> None:
        """Take in what has ended, where that is due, and hand over what is wanted."""
        if time.monotonic() >= self._poll_at:
            await self._ask_after_all()
        if time.monotonic() >= self._hand_over_at and not self._stopping:
            permitted = await self._ask(self._next_batch())
            if permitted:
                await self._hand_over(permitted)
        self._lose_patience()
        self._tell_pause()

    # Out

    def _next_batch(self) -> list[Call]:
        """As many of the calls as a batch may have, and as its file has room for."""
        some: list[Call] = []
        room = self._most_bytes
        for key in list(self._fresh):
            wish = self._wishes.get(key)
            if some and wish is not None and (len(some) == self._most or wish.size > room):
                break
            del self._fresh[key]
            if wish is not None:
                some.append(wish.call)
                room -= wish.size
        return some

    async def _ask(self, wanted: Sequence[Call]) -> list[Call]:
        """Answer what is stored, and give what may be called now. The rest waits for a batch, or a call, of somebody else."""
        permitted: list[Call] = []
        for some in slices(wanted):
            turn = await self._do(self._calls.turn, self._name, [], some)
            self._on_turn(turn)
            for key, completion in turn.found.items():
                self._resolve(key, completion)
            permitted += [call for call in some if call.key in turn.permitted]
            if turn.refused:
                self._reject([call.key for call in some if call.key not in turn.permitted], BudgetSpent(turn.refused))
        return await self._still_wanted(permitted)

    async def _still_wanted(self, permitted: Sequence[Call]) -> list[Call]:
        """Those that somebody still waits for; the others' permission is given back."""
        dropped = [Done(call=call, outcome=Outcome.UNSENT) for call in permitted if call.key not in self._wishes]
        if dropped:
            await self._do(self._calls.turn, self._name, dropped, [])
        return [call for call in permitted if call.key in self._wishes]

    async def _hand_over(self, calls: Sequence[Call]) -> None:
        """Submit a batch; where it is not taken, its calls are given back."""
        batch = Batch(id=uuid4().hex, keys=frozenset(call.key for call in calls))
        await self._do(self._calls.open_batch, self._name, batch.id, list(batch.keys))
        if not await self._do(self._calls.poll_batch, batch.id, every_s=self._api.lost_s):
            return  # another process took it for one whose worker died, and gives its calls back
        try:
            file_id = await self._upload(batch.id, calls)
        except Snatched:
            return
        except TrainerError as problem:
            await self._not_take(batch, problem)
            return
        if file_id and not self._stopping:
            await self._create(batch, file_id)
        else:
            await self._do(self._calls.close_batch, batch.id, state=FAILED, error="The job stopped before this batch was sent.")

    async def _upload(self, batch_id: str, calls: Sequence[Call]) -> str:
        """Send the requests; "" where we stop."""
        try:
            return await self._fetcher.while_ours(batch_id, self._api.upload(batch_id, calls), every_s=self._api.lost_s / 6)
        except LetGo:
            return ""

    async def _create(self, batch: Batch, file_id: str) -> None:
        """Where the batch may or may not have arrived, it stays open until it is looked for at the provider."""
        try:
            remote_id = await self._api.create(batch.id, file_id)
        except TeacherUnavailable as problem:
            self._not_taken.add(str(problem))
        except TrainerError as problem:
            await self._not_take(batch, problem)
        else:
            self._not_taken.clear()
            self._not_answered.wait()
            self._under_way = True
            await self._do(self._calls.update_batch, batch.id, remote_id=remote_id, state="in_progress")

    async def _not_take(self, batch: Batch, problem: TrainerError) -> None:
        """The batch was not begun. Raises ConfigError where a person has to do something."""
        await self._do(self._calls.close_batch, batch.id, state=FAILED, error=str(problem))
        if isinstance(problem, ConfigError):
            raise problem
        if self._not_taken.add(str(problem)) and is_too_much(problem):
            self._split(batch)

    def _split(self, batch: Batch) -> None:
        self._most = max(1, min(self._most, len(batch.keys)) // 2)

    # In

    async def _ask_after_all(self) -> None:
        """Ask after all open batches of the endpoint, whoever submitted them; what they do not hold may be asked for now."""
        held: set[str] = set()
        self._under_way = False
        try:
            open_batches = await self._do(self._calls.batches, self._name)
            for batch in open_batches:
                if self._stopping or not await self._ask_after(batch):
                    held |= batch.keys
            self._unread = {batch.id: self._unread[batch.id] for batch in open_batches if batch.id in self._unread}
        finally:
            self._poll_at = time.monotonic() + self._poll_s
        self._fresh = {key: None for key in self._wishes if key not in held}

    async def _ask_after(self, batch: Batch) -> bool:
        """Whether the batch has ended. One that cannot be read stays open, and holds up nobody but whoever waits for it."""
        if batch.id in self._unread and time.monotonic() < self._unread[batch.id].until:
            return False
        fetched = await self._fetcher.fetch(batch, every_s=self._poll_s)
        if fetched is None:
            self._under_way |= batch.id not in self._unread
            return False
        self._tell(batch, fetched)
        if fetched.trouble is not None:
            self._count_unread(batch, fetched.trouble)
        else:
            self._unread.pop(batch.id, None)
            self._under_way |= not fetched.over
        return fetched.over

    def _count_unread(self, batch: Batch, problem: TrainerError) -> None:
        trouble = self._unread.setdefault(batch.id, _Setbacks(self._poll_s))
        trouble.add(f"Batch {batch.remote_id or batch.id} cannot be asked after: {problem}")
        if trouble.last_for(self._patience_s) and not isinstance(problem, Gone):  # that one is given up, and its calls are made again
            since = f"This has gone on for {_duration(self._patience_s)}, so the stage stopped."
            self._reject(batch.keys, TeacherUnavailable(f"{trouble.words} {since} The batch stays open: resume to ask again."))

    def _tell(self, batch: Batch, fetched: Fetched) -> None:
        """Tell whoever waits what came of a batch, and learn from it."""
        for end in fetched.ends:
            if end.completion is not None:
                self._resolve(end.call.key, end.completion)
        if fetched.answered:
            self._failed_lines.clear()
            self._not_answered.clear()
            self._most = min(self._largest, 2 * self._most)
        if fetched.problem and self._not_answered.add(fetched.problem) and fetched.too_much:
            self._split(batch)
        failed = [end for end in fetched.ends if end.completion is None]
        if not fetched.answered:
            self._failed_lines |= {end.call.key for end in failed}
        if failed and len(self._failed_lines) >= FAILED_LINES:
            last = failed[-1].error
            self._not_answered.add(f"{len(self._failed_lines)} calls failed in batches and none was answered. The last one: {last}")
            return
        for end in failed:
            self._count_line(end)

    def _count_line(self, end: Done) -> None:
        if end.outcome is Outcome.REFUSED:
            self._reject([end.call.key], RequestRefused(end.error))
        elif end.outcome is not Outcome.LIMITED:
            self._count_failure(end.call.key, end.error)

    def _count_failure(self, key: str, said: str) -> None:
        wish = self._wishes.get(key)
        if wish is not None:
            wish.failures += 1
            if wish.failures > self._api.config.retries:
                self._reject([key], ResponseFormatError(f"No answer after {wish.failures} batches. The last one: {said}"))

    # Whoever waits

    def _lose_patience(self) -> None:
        """After too long without a batch that comes to something, and with none under way, the stage stops."""
        for trouble in (self._not_taken, self._not_answered):
            if trouble.last_for(self._patience_s) and not self._under_way:
                words = (
                    f"Endpoint {self._name!r} took no batch, or answered none, in {_duration(self._patience_s)}, so the stage stopped. "
                    f"{trouble.words} Nothing is lost: resume when the endpoint is well again."
                )
                trouble.clear()
                self._reject(list(self._wishes), TeacherUnavailable(words))

    def _tell_pause(self) -> None:
        troubles = [self._not_taken, self._not_answered, *self._unread.values()]
        words = next((trouble.words for trouble in troubles if trouble.words), "")
        fewer = f" Until batches are answered, one has {self._most:,} calls at most." if self._most < self._largest else ""
        pause = f"Endpoint {self._name!r}: calls wait for its Batch API. {words}{fewer}" if words else ""
        if pause != self._pause:
            self._pause = pause
            self._on_pause(pause)
            logger.warning("%s", pause or f"endpoint {self._name!r} takes and answers batches again")

    def _resolve(self, key: str, completion: Completion) -> None:
        wish = self._wishes.pop(key, None)
        if wish is not None:
            wish.future.set_result(completion)

    def _reject(self, keys: Iterable[str], error: Exception) -> None:
        for key in keys:
            wish = self._wishes.pop(key, None)
            if wish is not None:
                wish.future.set_exception(error)


def _duration(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{math.ceil(seconds)} s"
