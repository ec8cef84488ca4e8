"""The only HTTP in the library: paid calls to OpenAI-compatible endpoints, each answer kept under its content address.

A call is looked up before it is made and kept before it is used, so that no answer is paid for twice, whatever dies in between.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.config import EndpointConfig, RoleConfig
from trainer.errors import ConfigError, ResponseFormatError, TeacherUnavailable
from trainer.records import Completion
from trainer.roles import CompletionStore
from trainer.text import storable

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

FAILURES_IN_A_ROW = 20
"""So many refused calls without one good answer, and it is the endpoint that is at fault, not the items."""


def completion_key(request: Mapping[str, Any]) -> str:
    """The content address of a canonical request: sha256 over its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


class Endpoint:
    """One endpoint as a run uses it: asks the store first, makes each missing call once, keeps the answer.

    Use as an async context manager, inside the event loop that makes the calls.
    """

    def __init__(
        self, name: str, config: EndpointConfig, store: CompletionStore, *, url: str = "", environ: Mapping[str, str] = os.environ
    ) -> None:
        """url: where the calls go, if that is not the config's base URL (the offline teacher is named there, not addressed)."""
        self.name = name
        self.config = config
        self.url = url or config.base_url
        self.asked = 0
        self.from_store = 0
        self._store = store
        self._key = _api_key(name, config, environ)
        self._slots = asyncio.Semaphore(config.max_at_once)
        self._under_way: dict[str, asyncio.Task[Completion]] = {}
        self._failures_in_a_row = 0
        self._closing = False
        self._client: openai.AsyncOpenAI | None = None

    async def __aenter__(self) -> Endpoint:
        # Imported by the first call: an idle worker is half as large without them.
        import httpx2
        import openai

        most = self.config.max_at_once
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key,
            timeout=self.config.timeout_s,
            max_retries=self.config.retries,
            http_client=httpx2.AsyncClient(
                limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
                timeout=self.config.timeout_s,
                follow_redirects=False,
            ),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Calls that are on their way are paid for: wait for their answers and keep them; those that wait for a slot are dropped."""
        self._closing = True
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def complete(
        self, messages: Sequence[Mapping[str, str]], role: RoleConfig, *, max_tokens: int | None = None, sample: int = 0
    ) -> Completion:
        """The answer to these messages; `sample` tells wanted repeats apart.

        Raises TeacherUnavailable (down, or limited for longer than the retries last), ConfigError (refuses us, or is no such
        API), ResponseFormatError (this one call cannot be answered).
        """
        request = {
            "endpoint": self.name,
            "base_url": self.config.base_url,
            "model": self.config.model,
            "messages": [dict(message) for message in messages],
            "temperature": role.temperature,
            "top_p": role.top_p,
            "max_tokens": max_tokens or role.max_tokens,
            "sample": sample,
        }
        key = completion_key(request)
        if key not in self._under_way:
            task = asyncio.ensure_future(self._find_or_call(key, request))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    async def _find_or_call(self, key: str, request: dict[str, Any]) -> Completion:
        found = await self._store.find(key)
        if found is not None:
            self.from_store += 1
            return found
        async with self._slots:
            if self._closing:
                raise asyncio.CancelledError
            completion = await self._call(key, request)
        await self._store.add(completion)
        self.asked += 1
        return completion

    async def _call(self, key: str, request: dict[str, Any]) -> Completion:
        import openai

        arguments = {name: request[name] for name in ("model", "messages", "temperature", "top_p", "max_tokens")}
        if self.config.send_seed:
            arguments["seed"] = request["sample"]
        started = time.monotonic()
        try:
            # The same key on a repeat lets a server that honours it answer without charging again.
            reply = await self._post(arguments, idempotency_key=key)
            completion = self._completion(key, request, reply, time.monotonic() - started)
        except ResponseFormatError as error:
            self._count_failure(error)
            raise
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            problem = _explain(self.name, self.url, self.config, error)
            if isinstance(problem, ResponseFormatError):
                self._count_failure(problem)
            raise problem from error
        self._failures_in_a_row = 0
        return completion

    async def _post(self, arguments: Mapping[str, Any], *, idempotency_key: str) -> ChatCompletion:
        """`chat.completions.create` without its walk over the types of all parameters, which takes a quarter of a call's time."""
        from openai.types.chat import ChatCompletion

        assert self._client is not None, "use the endpoint as an async context manager"
        options: Any = {"headers": {"Idempotency-Key": idempotency_key}, "security": {"bearer_auth": True}}
        return await self._client.post("/chat/completions", cast_to=ChatCompletion, body=dict(arguments), options=options)

    def _completion(self, key: str, request: dict[str, Any], reply: ChatCompletion, latency_s: float) -> Completion:
        choices = getattr(reply, "choices", None)
        if not choices or not hasattr(choices[0], "message"):
            raise ConfigError(
                f"Endpoint {self.name!r} at {self.url} answered something that is not a chat completion. "
                "Check the base URL: for most servers it ends in /v1."
            )
        usage = reply.usage
        return Completion(
            key=key,
            endpoint=self.name,
            model=self.config.model,
            request=request,
            text=storable(choices[0].message.content or ""),
            finish_reason=storable(str(choices[0].finish_reason or "stop"))[:30],
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            latency_s=latency_s,
        )

    def _count_failure(self, error: ResponseFormatError) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise TeacherUnavailable(
                f"Endpoint {self.name!r} failed {self._failures_in_a_row} calls in a row, so the stage stopped. The last one: {error} "
                "Nothing is lost: resume when the endpoint is well again."
            ) from error


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


def _explain(name: str, url: str, config: EndpointConfig, error: Exception) -> Exception:
    """What went wrong with a call, sorted by who can act; an error that is none of the API's is given back as it is."""
    import openai

    where = f"Endpoint {name!r} ({url})"
    if isinstance(error, openai.APITimeoutError):
        return TeacherUnavailable(f"{where} did not answer within {config.timeout_s:g} s. Resume when it does, or raise its timeout.")
    if isinstance(error, openai.APIConnectionError):
        reason = error.__cause__ or error
        return TeacherUnavailable(f"{where} could not be reached: {reason}. Check the address and that the server runs, then resume.")
    if isinstance(error, openai.RateLimitError):
        return TeacherUnavailable(
            f"{where} kept answering 429 (too many requests). Lower 'calls at once', or resume later. It said: {_said(error)}"
        )
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return ConfigError(f"{where} refused the key in {config.key_env or '(none)'}: {_said(error)} Set a valid key and resume.")
    if isinstance(error, openai.NotFoundError):
        return ConfigError(
            f"{where} does not know the model {config.model!r} or the path: {_said(error)} "
            "Correct the endpoint, then launch a run like this one: a run keeps the endpoint it was launched with."
        )
    if isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
        return ConfigError(f"{where} redirects elsewhere (HTTP {error.status_code}). Set the base URL to the final address.")
    if isinstance(error, openai.APIStatusError) and (error.status_code >= 500 or error.status_code in (408, 409)):
        return TeacherUnavailable(
            f"{where} kept answering HTTP {error.status_code}: {_said(error)} Nothing is lost: resume when the endpoint is well again."
        )
    if isinstance(error, openai.APIStatusError):
        return ResponseFormatError(f"{where} answered HTTP {error.status_code}: {_said(error)}")
    if isinstance(error, openai.APIResponseValidationError | json.JSONDecodeError):
        return ConfigError(f"{where} answered something that is not JSON. Check the base URL: for most servers it ends in /v1.")
    return error


def _said(error: openai.APIStatusError) -> str:
    """What the server gave as its reason. The client knows one form only; of any other the body is shown, or its beginning."""
    if (isinstance(error.body, str) and error.body.lstrip()[:1] == "<") or "<html" in error.message[:200].lower():
        return f"It answered with a web page (HTTP {error.status_code}); is /v1 missing from the address?"
    knows_more = " - " in error.message
    return storable(error.message if knows_more or not error.body else f"{error.message} - {str(error.body)[:300]}")
