"""A student whose checkpoint is served by an OpenAI-compatible server: tuned here, asked there.

The server is one that somebody runs (a base URL), or a vLLM that is started for the time of the stage (`trainer.vllm_server`). What an item
draws depends on its own seed, as far as the server samples by it; which items are in flight together is for the server to arrange.

Imports neither torch nor transformers: a worker can ask a server without having either.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.addresses import AddressGuard
from trainer.api_errors import explain
from trainer.checkpoints import Manifest, find_checkpoint, require_loadable
from trainer.config import SCRATCH_MODEL, EndpointConfig, RunConfig
from trainer.endpoint_checks import refused_settings
from trainer.errors import Cancelled, ConfigError, RequestRefused, TeacherUnavailable
from trainer.folder import locked
from trainer.keys import key_of
from trainer.models import require_name
from trainer.prompts import student_prompt
from trainer.records import BenchmarkItem, Example, Instruction, Preflight, Response, TuningNews
from trainer.roles import CheckpointInfo, Student
from trainer.seeds import derive_seed
from trainer.text import storable

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

NAME = "student server"
VLLM = "vllm"
"""The value of respond.server that means: start vLLM for the time of the stage."""
TIMEOUT_S = 900.0
"""For a whole response: a busy server lets the last ones wait."""
RETRIES = 5
SHORTEST = 16
"""New tokens below which a prompt counts as too long for the server."""
REFUSED_ITEMS = 8
"""So many refusals without one answer mean that it is not the prompts."""
POLL_S = 0.2
MERGED = ".merged-"
"""What the names of folders have in them where weights lie merged for the time of a stage."""
_TOO_LONG = ("context length", "context_length", "max_model_len", "maximum context", "too long", "exceeds the available context")


@dataclass(frozen=True, kw_only=True)
class Served:
    """Where the checkpoint is served: the base URL, the model's name there ("": the first it lists), and who may be called."""

    url: str
    model: str = ""
    key_env: str = ""
    guard: AddressGuard | None = None


def with_server(
    config: RunConfig,
    student: Student,
    *,
    iteration: int,
    start: Path | None,
    guard: AddressGuard | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Student:
    """The student as it is, or asked at a server where the config names one. guard: which addresses may be called; none is no limit."""
    if not config.respond.server:
        return student
    return ServedStudent(config, student, iteration=iteration, start=start, guard=guard, should_stop=should_stop)


class ServedStudent:
    """Implements `roles.Student`: `tuner` checks and tunes, a server answers."""

    def __init__(
        self,
        config: RunConfig,
        tuner: Student,
        *,
        iteration: int,
        start: Path | None,
        guard: AddressGuard | None = None,
        environ: Mapping[str, str] = os.environ,
        should_stop: Callable[[], bool] = lambda: False,
        retries: int = RETRIES,
    ) -> None:
        """retries: of one request, after a lost connection, a 429 or a 5xx, with growing waits."""
        self._config = config
        self._tuner = tuner
        self._iteration = iteration
        self._start = start
        self._guard = guard
        self._environ = environ
        self._should_stop = should_stop
        self._retries = retries

    def check(self) -> Preflight:
        return self._tuner.check()

    def imitate(
        self, examples: Sequence[Example], *, iteration: int, tell: Callable[[TuningNews], None], use_saved: bool = False
    ) -> CheckpointInfo:
        """See `trainer.imitation.imitate`; what is asked afterwards is the new checkpoint."""
        info = self._tuner.imitate(examples, iteration=iteration, tell=tell, use_saved=use_saved)
        self._iteration, self._start = iteration, info.path
        return info

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        """Answer each instruction not in `done`; each response is kept as it comes.

        A prompt the server will not answer becomes a Response with a failure. Raises TeacherUnavailable where the server is down,
        ConfigError where it refuses us, ChildDied or OutOfMemory where a vLLM of our own ended, Cancelled.
        """
        asked = [
            Asked(instruction=item, seed=derive_seed(self._config.seed, "respond", self._iteration, item.key) % 2**31)
            for item in instructions
            if item.key not in done
        ]
        self._ask_all(asked, self._config.respond.temperature, keep)

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        """Answer the items not in `done` greedily; one that is refused gets an empty reply."""
        by_key = {item.key: item for item in items}
        asked = [Asked(instruction=Instruction(key=item.key, text=item.prompt), seed=0) for item in items if item.key not in done]
        self._ask_all(asked, 0.0, lambda responses: keep([(by_key[response.instruction], response.text) for response in responses]))

    def _ask_all(self, asked: Sequence[Asked], temperature: float, keep: Callable[[list[Response]], None]) -> None:
        if not asked:
            return
        with self._served() as served:
            endpoint = endpoint_config(served, at_once=self._config.respond.at_once)
            call = Calls(
                endpoint=endpoint,
                key=key_of(NAME, endpoint, self._environ),
                guard=served.guard,
                template=self._config.student.template,
                temperature=temperature,
                max_tokens=self._config.respond.max_new_tokens,
                retries=self._retries,
            )
            relay(lambda put: call.all(asked, put), keep=keep, should_stop=self._should_stop)

    @contextmanager
    def _served(self) -> Iterator[Served]:
        settings = self._config.respond
        if settings.server != VLLM:
            model = settings.server_model.replace("{iteration}", str(self._iteration))
            yield Served(url=settings.server, model=model, key_env=settings.server_key_env, guard=self._guard)
            return
        from trainer.vllm_server import executable_of, free_port, serving, vllm_command

        executable_of(VLLM)  # before anything is merged for it
        port = free_port()
        with self._servable() as (place, manifest):
            command = vllm_command(
                place,
                manifest,
                port,
                revision="" if self._start else self._config.student.revision,
                precision=self._config.student.precision,
            )
            with serving(command, port, should_stop=self._should_stop) as url:
                yield Served(url=url)

    @contextmanager
    def _servable(self) -> Iterator[tuple[Path | str, Manifest | None]]:
        """What vLLM is given to serve: the checkpoint, merged for the time of the stage where its base is nowhere, or the base student.

        Raises ConfigError for a damaged checkpoint or a source that is not allowed, and what `export.put_merged` raises.
        """
        if self._start is None:
            name = self._config.student.model
            if name != SCRATCH_MODEL:
                require_name(name)
            yield name, None
            return
        if find_checkpoint(self._start) is None:
            yield self._start, None
            return
        manifest = require_loadable(self._start)
        if not manifest.must_merge:
            yield self._start, manifest
            return
        from trainer.export import put_merged

        with folder_beside(self._start) as folder:
            put_merged(self._start, manifest, folder, should_stop=self._should_stop, tell=logger.info)
            yield folder, None


@contextmanager
def folder_beside(checkpoint: Path) -> Iterator[Path]:
    """A folder beside a checkpoint for the time of a stage. What a kill left of earlier ones goes first.

    Whoever uses one holds its lock, which ends with the process: another stage may serve the same checkpoint meanwhile.
    """
    for left in checkpoint.parent.glob(f".*{MERGED}*"):
        with suppress(ConfigError), locked(left):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{checkpoint.name}.making-", dir=checkpoint.parent))
    folder = made
    try:
        with locked(made):  # before it has the name that others look for
            folder = made.rename(made.with_name(made.name.replace(".making-", MERGED)))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def endpoint_config(served: Served, *, at_once: int) -> EndpointConfig:
    """The server as the settings of an endpoint. Raises ConfigError where the address is none, or holds a name and password."""
    config = EndpointConfig(base_url=served.url, model=served.model, key_env=served.key_env, timeout_s=TIMEOUT_S, max_at_once=at_once)
    text = next((complaint for _, complaint in refused_settings(config)), "")
    if not text and not served.url.startswith(("http://", "https://")):
        text = f"respond.server is {served.url!r}. Give a base URL that begins with http:// or https://, or {VLLM}, or leave it empty."
    if text:
        raise ConfigError(text, fields={"respond.server": text})
    return config


def relay(
    work: Callable[[Callable[[Response], None]], Any], *, keep: Callable[[list[Response]], None], should_stop: Callable[[], bool]
) -> None:
    """Run a coroutine in a thread with an event loop of its own; keep in this thread what it puts, whatever came together at once.

    Raises what the coroutine raises, Cancelled when asked to stop; what was put before is kept first.
    """
    came: queue.SimpleQueue[Response | None] = queue.SimpleQueue()
    failure: list[BaseException] = []
    stop = threading.Event()

    async def until_stopped() -> None:
        task = asyncio.ensure_future(work(came.put))
        while not task.done() and not stop.is_set():
            await asyncio.wait({task}, timeout=POLL_S)
        if not task.done():
            task.cancel()
        await task

    def in_thread() -> None:
        try:
            asyncio.run(until_stopped())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # raised again where the caller is
            failure.append(error)
        finally:
            came.put(None)

    thread = threading.Thread(target=in_thread, name="student-server", daemon=True)
    thread.start()
    try:
        while _keep_what_came(came, keep):
            if should_stop():
                stop.set()
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]
    if should_stop():
        raise Cancelled("Stopped while the student was answering. What is kept stays kept; the stage can go on later.")


def _keep_what_came(came: queue.SimpleQueue[Response | None], keep: Callable[[list[Response]], None]) -> bool:
    """Wait a moment for responses and keep them; False when there will be no more."""
    together: list[Response] = []
    more = True
    try:
        first = came.get(timeout=POLL_S)
        while first is not None:
            together.append(first)
            first = came.get_nowait()
        more = False
    except queue.Empty:
        pass
    if together:
        keep(together)
    return more


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An instruction to be answered, and the seed that goes with it."""

    instruction: Instruction
    seed: int


@dataclass(kw_only=True)
class Calls:
    """The calls of one stage to one server."""

    endpoint: EndpointConfig
    key: str
    guard: AddressGuard | None
    template: str
    temperature: float
    max_tokens: int
    retries: int
    answered: int = 0
    refused: int = 0
    _waiting: Iterator[Asked] = field(default_factory=lambda: iter(()))

    async def all(self, asked: Sequence[Asked], put: Callable[[Response], None]) -> None:
        """Ask everything, some at once; the first error that is not one request's own ends it."""
        import httpx2
        import openai

        from trainer.transport import Transport

        http = httpx2.AsyncClient(follow_redirects=False, transport=Transport(self.guard, limits=httpx2.Limits(keepalive_expiry=30)))
        timeout = httpx2.Timeout(self.endpoint.timeout_s, connect=self.endpoint.connect_timeout_s)
        async with openai.AsyncOpenAI(
            base_url=self.endpoint.base_url, api_key=self.key, max_retries=self.retries, timeout=timeout, http_client=http
        ) as client:
            if not self.endpoint.model:
                self.endpoint = replace(self.endpoint, model=await self._first_model(client))
            self._waiting = iter(asked)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.endpoint.max_at_once, len(asked))):
                        group.create_task(self._work(client, put))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _first_model(self, client: openai.AsyncOpenAI) -> str:
        import openai

        try:
            listed = await client.models.list()
        except openai.APIStatusError as error:
            text = f"The student's server does not list its models (HTTP {error.status_code}). Name the model in respond.server_model."
            raise ConfigError(text) from None
        except openai.APIError as error:
            raise self._explained(error) from error
        if not getattr(listed, "data", None):
            text = f"The server at {self.endpoint.base_url} lists no models. Check respond.server: for most servers it ends in /v1."
            raise ConfigError(text)
        return str(listed.data[0].id)

    async def _work(self, client: openai.AsyncOpenAI, put: Callable[[Response], None]) -> None:
        for asked in self._waiting:
            put(await self._response(client, asked))

    async def _response(self, client: openai.AsyncOpenAI, asked: Asked) -> Response:
        """A response, or one with a failure where the server is well and will not answer this one."""
        import openai

        max_tokens = self.max_tokens
        answered_before, garbled = self.answered, 0
        while True:
            try:
                response = await self._ask(client, asked, max_tokens)
            except ValueError as error:  # no JSON, though it says so
                garbled += 1
                if garbled > self.retries:
                    raise self._explained(error) from error
                continue
            except openai.APIError as error:
                problem = self._explained(error)
                if isinstance(problem, RequestRefused) and _is_too_long(error) and max_tokens // 2 >= SHORTEST:
                    max_tokens //= 2  # prompt and response together must fit
                    continue
                return self._failed(asked, error, problem, others_answered=self.answered > answered_before)
            self.answered += 1
            return response

    async def _ask(self, client: openai.AsyncOpenAI, asked: Asked, max_tokens: int) -> Response:
        options: dict[str, Any] = {
            "model": self.endpoint.model,
            "temperature": self.temperature,
            "top_p": 1.0,
            "max_tokens": max_tokens,
            "seed": asked.seed,
        }
        item = asked.instruction
        if self.template == "paper":
            reply: Any = await client.completions.create(prompt=student_prompt(item), **options)
        else:
            reply = await client.chat.completions.create(messages=[{"role": "user", "content": item.prompt}], **options)
        return _read(item, reply, self.endpoint)

    def _failed(self, asked: Asked, error: Exception, problem: Exception, *, others_answered: bool) -> Response:
        """The failure as a Response where it is this request's own; else raises it."""
        own = isinstance(problem, RequestRefused)
        if getattr(error, "status_code", None) == 500 and others_answered:
            own = True  # all through its repeats others were answered
        if not own:
            raise problem from error
        self.refused += 1
        if self.refused >= REFUSED_ITEMS and not self.answered:
            raise TeacherUnavailable(
                f"The student's server at {self.endpoint.base_url} refused {self.refused} requests and answered none: the stage stopped. "
                f"The last one: {problem} Nothing is lost: correct the server or respond.server, then resume."
            ) from error
        return Response(instruction=asked.instruction.key, text="", failure=str(problem))

    def _explained(self, error: Exception) -> Exception:
        problem = explain(NAME, self.endpoint.base_url, self.endpoint, error, key=self.key)
        return TeacherUnavailable(f"The student's server failed: {problem}") if problem is error else problem


def _read(item: Instruction, reply: Any, endpoint: EndpointConfig) -> Response:
    """The reply of either kind of call. Raises ConfigError where it is none, as from a server of another kind."""
    choice = reply.choices[0] if getattr(reply, "choices", None) else None
    if choice is None:
        text = f"The server at {endpoint.base_url} answered no completion. For most servers the base URL ends in /v1."
        raise ConfigError(text)
    text = choice.message.content if hasattr(choice, "message") else choice.text
    tokens = reply.usage.completion_tokens if reply.usage else 0
    if choice.finish_reason == "content_filter" or (text is None and choice.finish_reason != "stop"):
        return Response(instruction=item.key, text="", failure=f"The student's server gave no text (it says: {choice.finish_reason}).")
    return Response(instruction=item.key, text=storable(text or "").strip(), tokens=tokens, cut=choice.finish_reason == "length")


def _is_too_long(error: Exception) -> bool:
    return any(words in str(error).lower() for words in _TOO_LONG)
