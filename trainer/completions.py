"""The only HTTP in the library: paid calls to OpenAI-compatible endpoints, each answer kept under its content address.

A call is looked up before it is made and kept before it is used, so that no answer is paid for twice, whatever dies in between.
Permission, pace and budget are the business of `Calls` (trainer.calls): the client asks for turns, makes the calls that are
permitted, and brings their ends to the next turn.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from trainer.api_errors import CALLS_PATH, explain, outcome_of
from trainer.batch_mode import BatchDesk
from trainer.calls import Call, Calls, Done, Outcome, Told, Turn
from trainer.config import EndpointConfig, RoleConfig
from trainer.errors import BudgetSpent, ConfigError, RequestRefused, ResponseFormatError, TeacherUnavailable
from trainer.keys import key_of
from trainer.limit_headers import told_of
from trainer.records import Completion
from trainer.wire import Schema, body_of, call_of, completion_key, read_reply, request_of

if TYPE_CHECKING:
    import httpx2
    import openai

    from trainer.addresses import AddressGuard

logger = logging.getLogger(__name__)

REFUSED_ITEMS = 20
"""So many requests refused by an endpoint that never answered one, and it is at fault, not the items."""
ODD_REPLIES = 5
"""So many replies that are no chat completions, from an endpoint that never sent one, and it is another kind of server."""

MOST_LIMITED = 12
"""A call that was answered 429 so often in a row, while at least as many others were answered, is itself what the server will not take."""

LARGEST_TURN = 200
KEPT_S = 4.0
"""How long an idle connection is kept: many servers hang up after 5, and a call that is sent just then counts as one that may be paid."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 20.0


class Endpoint:
    """One endpoint as a run uses it: asks for a turn, makes each permitted call once, tells how it ended.

    Use as an async context manager, inside the event loop that makes the calls.
    """

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        calls: Calls,
        *,
        url: str = "",
        guard: AddressGuard | None = None,
        environ: Mapping[str, str] = os.environ,
        on_pause: Callable[[str], None] = lambda text: None,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        """url: where the calls go, if that is not the config's base URL (the offline teacher is named there, not addressed).

        guard: which addresses may be connected to; none is no limit. on_pause: told why the endpoint is unwell, and "" when it is
        not any more. on_wait: told the same of batches.
        """
        self.name = name
        self.config = config
        self.url = url or config.base_url
        self.asked = 0
        self.from_store = 0
        self._calls = calls
        self._guard = guard
        self._key = key_of(name, config, environ)
        self._on_pause = on_pause
        self._pause = ""
        self._on_wait = on_wait
        self._wait = ""
        self._under_way: dict[str, asyncio.Task[Completion]] = {}
        self._desk = _Desk(name, calls, most_at_once=lambda: self.config.max_at_once, on_turn=self._after_turn)
        self._refused: set[str] = set()
        self._odd_replies = 0
        self._has_structured: bool | None = None
        """Whether the server has structured output; None as long as none of its answers says."""
        self._closing = asyncio.Event()
        self._batches: BatchDesk | None = None
        self._client: openai.AsyncOpenAI | None = None

    @property
    def structured(self) -> bool:
        """Whether a role that can should ask for its reply in JSON."""
        return self.config.structured != "text"

    async def __aenter__(self) -> Endpoint:
        # Imported by the first call: an idle worker is half as large without them.
        import httpx2
        import openai

        from trainer.transport import Transport

        transport = Transport(self._guard, limits=httpx2.Limits(keepalive_expiry=KEPT_S))  # how many go at once is for the pace to say
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key,
            max_retries=0,  # a repeat needs a permission of its own
            http_client=httpx2.AsyncClient(follow_redirects=False, transport=transport),
        )
        self._desk.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Calls that are on their way are paid for: wait for their answers and keep them; those that wait for permission are dropped."""
        self._closing.set()
        self._desk.drop_wanted()
        if self._batches is not None:
            await self._batches.stop()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._desk.stop()
        if self._client is not None:
            await self._client.close()

    async def complete(
        self,
        role: str,
        messages: Sequence[Mapping[str, str]],
        config: RoleConfig,
        *,
        max_tokens: int | None = None,
        sample: int = 0,
        schema: Schema | None = None,
    ) -> Completion:
        """The answer to these messages; `sample` tells wanted repeats apart, `schema` asks for JSON of that form.

        Raises ConfigError (refuses us, or is no such API), BudgetSpent, ResponseFormatError (this one call cannot be answered),
        TeacherUnavailable (answers nothing that serves).
        """
        settings = self.config  # a call is paid by the prices by which its cost was held
        request = request_of(self.name, settings, config, messages, max_tokens=max_tokens, sample=sample, schema=schema)
        key = completion_key(request)
        if key not in self._under_way:
            call = call_of(key, role, request, settings, batch=config.batch)
            task = asyncio.ensure_future(self._answer_in_batch(call) if config.batch else self._answer(call, settings))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    async def _answer(self, call: Call, settings: EndpointConfig) -> Completion:
        """The stored answer, or that of the first attempt that has one."""
        failures = limited = 0
        answered_before, refusal = self.asked, None
        while True:
            found = await self._desk.ask(call)
            if found is not None:
                self.from_store += 1
                return found
            structured = "response_format" in call.request and refusal is None and self._has_structured is not False
            done, problem = await self._attempt(call, settings, structured=structured)
            await self._desk.end(done)
            if done.completion is not None:
                self.asked += 1
                if "response_format" in call.request:
                    self._has_structured = structured
                return done.completion
            assert problem is not None
            if done.outcome is Outcome.REFUSED:
                if structured and self._has_structured is None and _blames_the_request(problem):
                    refusal = problem  # a server without structured output may say so in any words: the same is asked without
                    continue
                raise await self._blame(call, refusal or problem)
            if done.outcome is Outcome.LIMITED:
                limited += 1
                if limited >= MOST_LIMITED and self.asked - answered_before >= MOST_LIMITED:
                    raise ResponseFormatError(f"Answered 429 {limited} times, while other calls were answered. The last one: {problem}")
                await self._pause_for(done.told.retry_after_s or FIRST_BACKOFF_S * 2 ** min(limited - 1, 4))
                continue
            if self._pause:
                continue  # the endpoint's fault: the call waits for its turn
            failures += 1
            if failures > self.config.retries:
                raise ResponseFormatError(f"No answer after {failures} attempts. The last one: {problem}") from problem
            await self._back_off(failures)

    async def _answer_in_batch(self, call: Call) -> Completion:
        if self._batches is None:
            assert self._client is not None, "use the endpoint as an async context manager"
            self._batches = BatchDesk(
                self.name,
                lambda: self.config,
                self._calls,
                self._client,
                thread=self._desk.thread,
                on_pause=self._tell_wait,
                on_turn=self._after_turn,
            )
            self._batches.start()
        completion = await self._batches.answer(call)
        self.asked += 1
        return completion

    async def _back_off(self, failures: int) -> None:
        """Wait longer after each failure, at random, so that the calls of an outage do not come back together."""
        await self._pause_for(FIRST_BACKOFF_S * 2 ** (failures - 1) * random.uniform(0.5, 1.0))

    async def _pause_for(self, seconds: float) -> None:
        """A stop ends the pause, and the call with it."""
        try:
            await asyncio.wait_for(self._closing.wait(), timeout=min(LONGEST_BACKOFF_S, seconds))
        except TimeoutError:
            return
        raise asyncio.CancelledError

    async def _attempt(self, call: Call, settings: EndpointConfig, *, structured: bool) -> tuple[Done, Exception | None]:
        """Make the call once. Gives how it ended, and the error in words where it has no answer.

        Not by `chat.completions.create`: the types of all its parameters take a quarter of a call's time.
        """
        import openai

        body, key = body_of(call.request, self.config), call.key
        if "response_format" in body and not structured:
            del body["response_format"]
            key = f"{call.key}-text"  # another body is another request
        started = time.monotonic()
        response: httpx2.Response | None = None
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await self._send(body, key)
            completion = read_reply(call, json.loads(response.content), settings, latency_s=time.monotonic() - started)
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError, ResponseFormatError) as error:
            outcome, problem, told = self._sort_odd(response) if response is not None else self._sort(error)
            return Done(call=call, outcome=outcome, told=told, error=str(problem)), problem
        return Done(call=call, outcome=Outcome.ANSWERED, completion=completion, told=told_of(response.headers)), None

    async def _send(self, body: Mapping[str, Any], idempotency_key: str) -> httpx2.Response:
        import httpx2

        assert self._client is not None, "use the endpoint as an async context manager"
        options: Any = {
            # The same key on a repeat lets a server that honours it answer without charging again.
            "headers": {"Idempotency-Key": idempotency_key},
            "timeout": httpx2.Timeout(self.config.timeout_s, connect=min(self.config.connect_timeout_s, 0.9 * self.config.timeout_s)),
            "security": {"bearer_auth": True},
        }
        return await self._client.post(CALLS_PATH, cast_to=httpx2.Response, body=dict(body), options=options)

    def _sort(self, error: Exception) -> tuple[Outcome, Exception, Told]:
        """What an attempt without a reply means for money and pace, and the error in words."""
        import httpx2
        import openai

        if isinstance(error, TimeoutError):
            error = openai.APITimeoutError(request=httpx2.Request("POST", self.url))
        problem = explain(self.name, self.url, self.config, error, key=self._key)
        problem.__cause__ = None if problem is error else error
        told = told_of(error.response.headers) if isinstance(error, openai.APIStatusError) else Told()
        return outcome_of(error, problem), problem, told

    def _sort_odd(self, response: httpx2.Response) -> tuple[Outcome, Exception, Told]:
        """A reply that is no chat completion may be a paid one that was garbled on its way, or come from another kind of server."""
        self._odd_replies += 1
        web_page = response.content.lstrip()[:1] == b"<"
        if not self.asked and (web_page or self._odd_replies >= ODD_REPLIES):
            return Outcome.REFUSED, _not_this_api(self.name, self.url), Told()
        problem = ResponseFormatError(f"Endpoint {self.name!r} answered something that is not a chat completion.")
        return Outcome.UNANSWERED, problem, Told()

    async def _blame(self, call: Call, problem: Exception) -> Exception:
        """The error of a refused call: its own, or the endpoint's, where that refuses one request after another and never answered."""
        self._refused.add(call.key)
        if not isinstance(problem, RequestRefused) or self.asked or len(self._refused) < REFUSED_ITEMS:
            return problem
        if await self._desk.has_answered():
            return problem
        return TeacherUnavailable(
            f"Endpoint {self.name!r} refused {len(self._refused)} requests and answered none, so the stage stopped. "
            f"The last one: {problem} Nothing is lost: correct the endpoint, then resume."
        )

    def _tell_wait(self, text: str) -> None:
        if text != self._wait:
            self._wait = text
            self._on_wait(text)

    def _after_turn(self, turn: Turn) -> None:
        self.config = turn.settings or self.config
        if turn.waits_for is not None and self._batches is None:  # a desk of batches of our own has its own to say
            self._tell_wait(turn.waits_for)
        if turn.pause != self._pause:
            self._pause = turn.pause
            self._on_pause(turn.pause)
            logger.warning("%s", turn.pause or f"endpoint {self.name!r} answers again")


class _Desk:
    """Collects the ends of calls and the wish for others, and takes turns for them, one after another.

    While a turn is taken in its thread, what comes next gathers: the slower the place where calls are kept, the larger the turns.
    """

    def __init__(self, name: str, calls: Calls, *, most_at_once: Callable[[], int], on_turn: Callable[[Turn], None]) -> None:
        self._name = name
        self._calls = calls
        self._most_at_once = most_at_once
        self._on_turn = on_turn
        self._wanted: dict[str, tuple[Call, asyncio.Future[Completion | None]]] = {}
        self._fresh: set[str] = set()
        self._done: list[tuple[Done, asyncio.Future[None]]] = []
        self._at_work = 0
        self._ask_at = 0.0
        self._wake = asyncio.Event()
        self._stopping = False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"calls-{name}")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._take_turns())

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await asyncio.get_running_loop().run_in_executor(self.thread, self._calls.close)
        self.thread.shutdown()

    async def ask(self, call: Call) -> Completion | None:
        """The answer from the store, or None where the call may be made now. Raises BudgetSpent."""
        future: asyncio.Future[Completion | None] = asyncio.get_running_loop().create_future()
        if self._stopping:
            raise asyncio.CancelledError
        self._wanted[call.key] = (call, future)
        self._fresh.add(call.key)
        self._wake.set()
        return await future

    async def end(self, done: Done) -> None:
        """Returns when the end of the call is durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.append((done, future))
        self._wake.set()
        await future

    async def has_answered(self) -> bool:
        """Whether the endpoint ever answered a call of this run."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._calls.has_answered, self._name)

    def drop_wanted(self) -> None:
        self._stopping = True
        for _, future in self._wanted.values():
            future.cancel()
        self._wanted.clear()
        self._fresh.clear()

    async def _take_turns(self) -> None:
        while not (self._stopping and not self._done and not self._at_work):
            await self._something_to_do()
            done, self._done = self._done[:LARGEST_TURN], self._done[LARGEST_TURN:]
            wanted = self._to_ask()
            if done or wanted:
                await self._take_turn(done, wanted)

    async def _something_to_do(self) -> None:
        await asyncio.sleep(0)  # lets those who are ready join
        if self._done or self._fresh:
            return
        self._wake.clear()
        timeout = max(0.0, self._ask_at - time.monotonic()) if self._wanted else None
        try:
            await asyncio.wait_for(self._wake.wait(), timeout)
        except TimeoutError:
            return

    def _to_ask(self) -> list[Call]:
        """Calls to look up that are new, and of those that wait as many as may find a place."""
        room = max(1, self._most_at_once() - self._at_work)
        waiting = [key for key in self._wanted if key not in self._fresh][:room]
        keys = [*waiting, *self._fresh][:LARGEST_TURN]
        self._fresh.difference_update(keys)
        return [self._wanted[key][0] for key in keys if key in self._wanted]

    async def _take_turn(self, done: list[tuple[Done, asyncio.Future[None]]], wanted: list[Call]) -> None:
        loop = asyncio.get_running_loop()
        self._at_work -= len(done)
        try:
            turn = await loop.run_in_executor(self.thread, self._calls.turn, self._name, [end for end, _ in done], wanted)
        except Exception as error:  # reaches everybody who took part: they are the edge where it can be told
            for future in [future for _, future in done] + [self._wanted.pop(c.key)[1] for c in wanted if c.key in self._wanted]:
                if not future.done():
                    future.set_exception(error)
            return
        for _, future in done:
            if not future.done():
                future.set_result(None)
        self._on_turn(turn)
        self._ask_at = time.monotonic() + turn.wait_s
        self._answer_wishes(turn, wanted)

    def _answer_wishes(self, turn: Turn, wanted: list[Call]) -> None:
        for call in wanted:
            if call.key in turn.permitted:
                self._at_work += 1
                self._resolve(call, None)
            elif call.key in turn.found:
                self._resolve(call, turn.found[call.key])
            elif turn.refused and call.key in self._wanted:
                future = self._wanted.pop(call.key)[1]
                if not future.done():
                    future.set_exception(BudgetSpent(turn.refused))
            elif call.key in self._wanted:  # behind those that were not asked for: it may wait for somebody's batch
                self._wanted[call.key] = self._wanted.pop(call.key)

    def _resolve(self, call: Call, answer: Completion | None) -> None:
        """Hand over what came of a wish. A permission that nobody waits for any more is given back by the next turn."""
        _, future = self._wanted.pop(call.key, (call, None))
        if future is not None and not future.done():
            future.set_result(answer)
        elif answer is None:
            self._done.append((Done(call=call, outcome=Outcome.UNSENT), asyncio.get_running_loop().create_future()))


def _blames_the_request(problem: Exception) -> bool:
    return getattr(problem.__cause__, "status_code", None) in (400, 422)


def _not_this_api(name: str, url: str) -> ConfigError:
    return ConfigError(
        f"Endpoint {name!r} at {url} answered something that is not a chat completion. Check the base URL: for most servers it ends in /v1."
    )
