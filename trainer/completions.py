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

from trainer.api_errors import explain, outcome_of
from trainer.batch_mode import BatchDesk
from trainer.calls import Call, Calls, Done, Outcome, Told, Turn
from trainer.config import EndpointConfig, RoleConfig
from trainer.errors import BudgetSpent, ConfigError, ResponseFormatError, TeacherUnavailable
from trainer.limit_headers import told_of
from trainer.records import Completion
from trainer.wire import Schema, body_of, call_of, completion_key, read_reply, request_of

if TYPE_CHECKING:
    import httpx2
    import openai

    from trainer.addresses import AddressGuard

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 20
"""So many refused calls without one good answer, and it is the endpoint that is at fault, not the items."""

LARGEST_TURN = 200
MANY, GATHER_S = 16, 0.015
"""With so many calls under way, a turn waits so long (s) for others to join: a quarter of the turns, at a hundredth of their latency."""
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
    ) -> None:
        """url: where the calls go, if that is not the config's base URL (the offline teacher is named there, not addressed).

        guard: which addresses may be connected to; none is no limit. on_pause: told why the endpoint is waited for, and "" when it is
        not any more.
        """
        self.name = name
        self.config = config
        self.url = url or config.base_url
        self.asked = 0
        self.from_store = 0
        self._calls = calls
        self._guard = guard
        self._key = _api_key(name, config, environ)
        self._on_pause = on_pause
        self._pause = ""
        self._under_way: dict[str, asyncio.Task[Completion]] = {}
        self._desk = _Desk(name, config, calls, on_turn=self._after_turn)
        self._failures_in_a_row = 0
        self._structured_refused = False
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

        limits = httpx2.Limits(max_connections=self.config.max_at_once, max_keepalive_connections=self.config.max_at_once)
        timeout = httpx2.Timeout(self.config.timeout_s, connect=self.config.connect_timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key,
            timeout=timeout,
            max_retries=0,  # a repeat needs a permission of its own
            http_client=httpx2.AsyncClient(timeout=timeout, follow_redirects=False, **_transport(self._guard, limits)),
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
        request = request_of(self.name, self.config, config, messages, max_tokens=max_tokens, sample=sample, schema=schema)
        key = completion_key(request)
        if key not in self._under_way:
            call = call_of(key, role, request, self.config, batch=config.batch)
            task = asyncio.ensure_future(self._answer_in_batch(call) if config.batch else self._answer(call))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    async def _answer(self, call: Call) -> Completion:
        """The stored answer, or that of the first attempt that has one."""
        failures = 0
        while True:
            found = await self._desk.ask(call)
            if found is not None:
                self.from_store += 1
                return found
            done, problem = await self._attempt(call)
            await self._desk.end(done)
            if done.completion is not None:
                self._failures_in_a_row = 0
                self.asked += 1
                return done.completion
            if done.outcome is Outcome.REFUSED:
                self._count_refusal(problem)
                raise problem
            if done.outcome is Outcome.LIMITED or self._pause:
                continue  # the endpoint's fault: the call waits for its turn
            failures += 1
            if failures > self.config.retries:
                raise ResponseFormatError(f"No answer after {failures} attempts. The last one: {problem}") from problem
            await self._back_off(failures)

    async def _answer_in_batch(self, call: Call) -> Completion:
        if self._batches is None:
            assert self._client is not None, "use the endpoint as an async context manager"
            self._batches = BatchDesk(self.name, self.config, self._calls, self._client, thread=self._desk.thread)
            self._batches.start()
        completion = await self._batches.answer(call)
        self.asked += 1
        return completion

    async def _back_off(self, failures: int) -> None:
        """Wait longer after each failure, at random, so that the calls of an outage do not come back together; a stop ends it."""
        longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (failures - 1))
        try:
            await asyncio.wait_for(self._closing.wait(), timeout=longest * random.uniform(0.5, 1.0))
        except TimeoutError:
            return
        raise asyncio.CancelledError

    async def _attempt(self, call: Call) -> tuple[Done, Exception]:
        """Make the call once. Gives how it ended, and the error in words where it has no answer."""
        import openai

        started = time.monotonic()
        response: httpx2.Response | None = None
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await self._post(call)
            completion = read_reply(call, json.loads(response.content), self.config, latency_s=time.monotonic() - started)
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError, ResponseFormatError) as error:
            outcome, problem, told = self._sort(error, response)
            return Done(call=call, outcome=outcome, told=told, error=str(problem)), problem
        return Done(call=call, outcome=Outcome.ANSWERED, completion=completion, told=told_of(response.headers)), AssertionError()

    async def _post(self, call: Call) -> httpx2.Response:
        """`chat.completions.create` without the types of all its parameters, which take a quarter of a call's time."""
        import openai

        body = body_of(call.request, self.config)
        key = call.key
        if self._structured_refused and body.pop("response_format", None):
            key += "-text"  # another body is another request
        try:
            return await self._send(body, key)
        except openai.BadRequestError as error:
            if "response_format" not in body or "response_format" not in str(error):
                raise
            self._structured_refused = True
            del body["response_format"]
            return await self._send(body, call.key + "-text")

    async def _send(self, body: Mapping[str, Any], idempotency_key: str) -> httpx2.Response:
        import httpx2

        assert self._client is not None, "use the endpoint as an async context manager"
        # The same key on a repeat lets a server that honours it answer without charging again.
        options: Any = {"headers": {"Idempotency-Key": idempotency_key}, "security": {"bearer_auth": True}}
        return await self._client.post("/chat/completions", cast_to=httpx2.Response, body=dict(body), options=options)

    def _sort(self, error: Exception, response: httpx2.Response | None) -> tuple[Outcome, Exception, Told]:
        """What an attempt without an answer means for money and pace, and the error in words."""
        import httpx2
        import openai

        if response is not None:  # an answer that is none: a stray one is asked for again, a server that has no other is the wrong one
            if self.asked:
                return (
                    Outcome.UNANSWERED,
                    ResponseFormatError(f"Endpoint {self.name!r} answered something that is not a chat completion."),
                    Told(),
                )
            return Outcome.REFUSED, _not_this_api(self.name, self.url), Told()
        if isinstance(error, TimeoutError):
            error = openai.APITimeoutError(request=httpx2.Request("POST", self.url))
        problem = explain(self.name, self.url, self.config, error)
        told = told_of(error.response.headers) if isinstance(error, openai.APIStatusError) else Told()
        return outcome_of(error, problem), problem, told

    def _count_refusal(self, error: Exception) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW and isinstance(error, ResponseFormatError):
            raise TeacherUnavailable(
                f"Endpoint {self.name!r} failed {self._failures_in_a_row} calls in a row, so the stage stopped. The last one: {error} "
                "Nothing is lost: resume when the endpoint is well again."
            ) from error

    def _after_turn(self, turn: Turn) -> None:
        if turn.pause != self._pause:
            self._pause = turn.pause
            self._on_pause(turn.pause)
            logger.warning("%s", turn.pause or f"endpoint {self.name!r} answers again")


class _Desk:
    """Collects the ends of calls and the wish for others, and takes turns for them, one after another.

    While a turn is taken in its thread, what comes next gathers: the slower the place where calls are kept, the larger the turns.
    """

    def __init__(self, name: str, config: EndpointConfig, calls: Calls, *, on_turn: Callable[[Turn], None]) -> None:
        self._name = name
        self._config = config
        self._calls = calls
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
        await asyncio.sleep(GATHER_S if self._at_work >= MANY else 0)  # lets others join: a turn has a price of its own
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
        room = max(1, self._config.max_at_once - self._at_work)
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

    def _resolve(self, call: Call, answer: Completion | None) -> None:
        """Hand over what came of a wish. A permission that nobody waits for any more is given back by the next turn."""
        _, future = self._wanted.pop(call.key, (call, None))
        if future is not None and not future.done():
            future.set_result(answer)
        elif answer is None:
            self._done.append((Done(call=call, outcome=Outcome.REFUSED), asyncio.get_running_loop().create_future()))


def _transport(guard: AddressGuard | None, limits: httpx2.Limits) -> dict[str, Any]:
    if guard is None:
        return {"limits": limits}
    from trainer.addresses import guarded_transport

    return {"transport": guarded_transport(guard, limits=limits)}


def _not_this_api(name: str, url: str) -> ConfigError:
    return ConfigError(
        f"Endpoint {name!r} at {url} answered something that is not a chat completion. Check the base URL: for most servers it ends in /v1."
    )


def _api_key(name: str, config: EndpointConfig, environ: Mapping[str, str]) -> str:
    if not config.key_env:
        return "none"
    key = environ.get(config.key_env, "")
    if not key:
        raise ConfigError(
            f"Endpoint {name!r} takes its key from the environment variable {config.key_env}, which is not set. "
            "Set it where the teacher worker starts (for instance in .env), then start again and resume."
        )
    return key
