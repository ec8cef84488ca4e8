"""Trying an endpoint: one tiny call, and what came of it in words, before a run spends an hour finding out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer.api_errors import CALLS_PATH, explain, outcome_of
from trainer.calls import Call, Done, Outcome, Told, Window
from trainer.config import EndpointConfig, RoleConfig
from trainer.errors import ResponseFormatError
from trainer.keys import NO_KEY, malformed, without_key
from trainer.limit_headers import told_of
from trainer.records import NO_REASON, Completion
from trainer.text import storable
from trainer.wire import Schema, body_of, call_of, completion_key, read_reply, request_of

if TYPE_CHECKING:
    import httpx2
    import openai

    from trainer.addresses import AddressGuard

ROLE = "test"
LARGEST_PORT = 65_535
LONGEST_S = 30.0
"""A person waits for it, and a thread of the web server with them."""

_QUESTION = "Answer with the one word yes."
_JSON_QUESTION = 'Answer with the JSON object {"answer": "yes"} and nothing else.'
_SCHEMA: Schema = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
_MAX_TOKENS = 256
"""An answer takes two; a model that thinks first needs room to get to it, and is refused by some servers where it has none."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of trying an endpoint.

    words: what happened and, where it went wrong, what to do. advice: what to change in an endpoint that works. done: how each call
    ended, for the ledger. structured, batches: what came of asking for JSON, and of asking for batches; None where not asked.
    """

    ok: bool
    words: str
    advice: tuple[str, ...] = ()
    done: tuple[Done, ...] = ()
    latency_s: float | None = None
    served_model: str = ""
    tells_usage: bool = False
    told: Told = field(default_factory=Told)
    structured: bool | None = None
    batches: bool | None = None

    @property
    def nanodollars(self) -> int:
        return sum(end.completion.nanodollars for end in self.done if end.completion)

    @property
    def unanswered_nanodollars(self) -> int:
        """The most that calls without an answer can have cost."""
        return sum(end.call.most_nanodollars for end in self.done if end.outcome is Outcome.UNANSWERED)

    @property
    def limits(self) -> list[tuple[str, Window]]:
        """The limits that the server told of, each with its name."""
        told = self.told
        windows = {"Requests": told.requests, "Tokens": told.tokens, "Input tokens": told.input_tokens, "Output tokens": told.output_tokens}
        return [(name, window) for name, window in windows.items() if window is not None]


async def try_endpoint(config: EndpointConfig, *, name: str, guard: AddressGuard | None, environ: Mapping[str, str]) -> Tried:
    """Make one tiny call, and one more for each of structured output and batches where the endpoint is to use them.

    guard: which addresses may be called; None is any. Takes `LONGEST_S` seconds at most. Raises nothing that an endpoint could be the
    cause of.
    """
    problem = _url_problem(config.base_url) or _key_problem(config, environ)
    if problem:
        return Tried(ok=False, words=problem)
    key = environ.get(config.key_env, "") or NO_KEY
    async with _client(config, guard, key) as client:
        return _without(key, await _Trial(name, config, client, key).run())


def _without(key: str, tried: Tried) -> Tried:
    """The same without the key."""
    words, served_model = without_key(tried.words, key), without_key(tried.served_model, key)
    return replace(tried, words=words, served_model=served_model, advice=tuple(without_key(text, key) for text in tried.advice))


def _url_problem(url: str) -> str:
    import httpx2

    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        return f"The base URL is no address: {error}. Correct it."
    if parts.scheme not in ("http", "https") or not parts.host or (parts.port or 0) > LARGEST_PORT:
        return "The base URL is no address: it has to begin with http:// or https:// and a host, and a port is at most 65535. Correct it."
    return ""


def _key_problem(config: EndpointConfig, environ: Mapping[str, str]) -> str:
    if not config.key_env:
        return ""
    key = environ.get(config.key_env, "")
    if not key:
        return (
            f"The variable {config.key_env} is not set where this test runs, so nothing was called. Set it there (for instance in .env) "
            "and restart. Runs take the key from the environment of their workers, which may have it."
        )
    return malformed(key, config)


def _client(config: EndpointConfig, guard: AddressGuard | None, key: str) -> openai.AsyncOpenAI:
    import httpx2
    import openai

    from trainer.transport import Transport

    timeout = httpx2.Timeout(LONGEST_S, connect=min(config.connect_timeout_s, LONGEST_S))
    http = httpx2.AsyncClient(timeout=timeout, follow_redirects=False, transport=Transport(guard, limits=httpx2.Limits()))
    return openai.AsyncOpenAI(base_url=config.base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http)


class _Trial:
    """One test, with its deadline."""

    def __init__(self, name: str, config: EndpointConfig, client: openai.AsyncOpenAI, key: str) -> None:
        self._name = name
        self._config = config
        self._client = client
        self._key = key
        self._ends_at = time.monotonic() + LONGEST_S

    async def run(self) -> Tried:
        done, reply = await self._ask(_QUESTION)
        completion = done.completion
        if completion is None:
            return Tried(ok=False, words=done.error, done=(done,), told=done.told)
        in_json = None if self._config.structured == "text" else (await self._ask(_JSON_QUESTION, schema=_SCHEMA))[0]
        batch_problem = await self._ask_for_batches() if self._config.batch_api else None
        return Tried(
            ok=True,
            words=f"It answered \N{LEFT DOUBLE QUOTATION MARK}{_shorten(completion.text, 80)}\N{RIGHT DOUBLE QUOTATION MARK}.",
            advice=tuple(_advice(self._config, completion, in_json, batch_problem or "")),
            done=(done, in_json) if in_json else (done,),
            latency_s=completion.latency_s,
            served_model=storable(str(reply.get("model") or ""))[:200],
            tells_usage=not completion.estimated,
            told=done.told,
            structured=None if in_json is None else _has_json(in_json),
            batches=None if batch_problem is None else not batch_problem,
        )

    async def _ask(self, question: str, *, schema: Schema | None = None) -> tuple[Done, Mapping[str, Any]]:
        """How a call ended, and the reply where it is a chat completion."""
        import openai

        call = self._call(question, schema)
        response: httpx2.Response | None = None
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience_s()):
                response = await self._send(body_of(call.request, self._config))
            reply = json.loads(response.content)
            completion = read_reply(call, reply, self._config, latency_s=time.monotonic() - started)
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError, ResponseFormatError) as error:
            return self._failed(call, error, response), {}
        return Done(call=call, outcome=Outcome.ANSWERED, completion=completion, told=told_of(response.headers)), reply

    def _call(self, question: str, schema: Schema | None) -> Call:
        """As a role with the paper's settings would ask, so that a parameter the server does not take shows here."""
        messages = [{"role": "user", "content": question}]
        role = RoleConfig(endpoint=self._name, max_tokens=_MAX_TOKENS)
        request = request_of(self._name, self._config, role, messages, schema=schema)
        return call_of(completion_key(request), ROLE, request, self._config)

    async def _send(self, body: Mapping[str, Any]) -> httpx2.Response:
        import httpx2

        options: Any = {"security": {"bearer_auth": True}}
        return await self._client.post(CALLS_PATH, cast_to=httpx2.Response, body=dict(body), options=options)

    def _patience_s(self) -> float:
        return min(self._config.timeout_s, self._ends_at - time.monotonic())

    def _failed(self, call: Call, error: Exception, response: httpx2.Response | None) -> Done:
        import openai

        if isinstance(error, TimeoutError):
            return Done(call=call, outcome=Outcome.UNANSWERED, error=self._too_slow())
        if response is not None:
            return Done(call=call, outcome=Outcome.REFUSED, error=self._no_chat_completion(response), told=told_of(response.headers))
        problem = explain(self._name, self._config.base_url, self._config, error, key=self._key)
        told = told_of(error.response.headers) if isinstance(error, openai.APIStatusError) else Told()
        return Done(call=call, outcome=outcome_of(error, problem), error=str(problem), told=told)

    def _too_slow(self) -> str:
        waited = min(self._config.timeout_s, LONGEST_S)
        more = "Raise its timeout, or try again later."
        if waited == LONGEST_S:
            more = f"A test waits no longer; a run waits {self._config.timeout_s:g} s for each answer."
        return f"Endpoint {self._name!r} ({self._config.base_url}) did not answer within {waited:g} s. {more}"

    def _no_chat_completion(self, response: httpx2.Response) -> str:
        return (
            f"Endpoint {self._name!r} ({self._config.base_url}) answered something that is not a chat completion. Check the base URL: "
            f"for most servers it ends in /v1. It said: {_shorten(without_key(response.text, self._key), 200)}"
        )

    async def _ask_for_batches(self) -> str:
        """Why the server's batches cannot be listed; "" where they can."""
        import httpx2
        import openai

        options: Any = {"params": {"limit": 1}, "security": {"bearer_auth": True}}
        try:
            async with asyncio.timeout(self._patience_s()):
                response = await self._client.get("/batches", cast_to=httpx2.Response, options=options)
            listed = json.loads(response.content)
        except openai.APIStatusError as error:
            return f"HTTP {error.status_code}"
        except TimeoutError:
            return "no answer in time"
        except openai.OpenAIError as error:
            return str(explain(self._name, self._config.base_url, self._config, error, key=self._key))
        except (ValueError, RecursionError):
            return "something that is not JSON"
        return "" if isinstance(listed, dict) and isinstance(listed.get("data"), list) else "something that is not a list of batches"


def _advice(config: EndpointConfig, completion: Completion, in_json: Done | None, batch_problem: str) -> Iterator[str]:
    """What to change in an endpoint that answers."""
    if not completion.text.strip():
        yield "The answer is empty: a model that thinks first may need longer replies of its roles, or an extra parameter to think less."
    if completion.finish_reason == NO_REASON:
        yield "It does not say why an answer ended (finish_reason), so that none of its answers is known to be whole: a run could use none."
    if completion.estimated:
        yield "It tells no token counts, so that costs and budgets rest on estimates from the length of texts."
    if not (config.price_input or config.price_output):
        yield "No prices are set: a budget in dollars does not hold its calls back."
    if in_json is not None and not _has_json(in_json):
        why = in_json.error or f"it answered {_shorten(in_json.completion.text if in_json.completion else '', 80)!r}."
        yield f"Structured output does not work: set it to text. When asked for {config.structured}, {why}"
    if batch_problem:
        yield f"The Batch API does not answer: switch off 'Offers the Batch API'. Asked for its batches, it gave {batch_problem}."


def _has_json(done: Done) -> bool:
    """Whether the answer is a JSON object with what was asked for."""
    try:
        data = json.loads(done.completion.text) if done.completion else None
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "answer" in data


def _shorten(text: str, most: int) -> str:
    """The beginning of what a server said, on one line."""
    line = " ".join(storable(text).split())
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
