"""OpenAI's Batch API over HTTP: a file of requests goes there, a batch is made of it, files of answers come back.

Every step has a time of its own, by the size of what is sent. Errors are those of `trainer.api_errors.explain`, and TooSlow.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.api_errors import explain
from trainer.calls import Batch, Call
from trainer.config import EndpointConfig
from trainer.errors import ConfigError, RequestRefused, TeacherUnavailable
from trainer.keys import key_of, without_key
from trainer.text import storable
from trainer.wire import body_of

if TYPE_CHECKING:
    import httpx2
    import openai

    from trainer.addresses import AddressGuard

OUR_ID = "lionweb_batch"
LATEST = 1000
"""So many of the provider's batches, the newest first, are looked through for one whose id was lost."""
MOST_BYTES = 100_000_000
"""Of the file of a batch: half of what OpenAI takes, for the whole of it is in memory while it is sent."""
SLOWEST = 100_000
"""Bytes a second: the slowest line that a file has the time for."""
CREATE_S = 120.0
"""So long an endpoint may take to make a batch of a file. Fixed, for other processes go by it too: see `BatchApi.lost_s`."""
LONGEST_ID = 200
LONGEST_REASON = 2000

COMPLETED, FAILED = "completed", "failed"
OVER = frozenset({COMPLETED, FAILED, "expired", "cancelled"})


class Gone(TeacherUnavailable):
    """The provider says it has no such batch, or not its answers, which may have been made and paid. It may be wrong."""


class TooSlow(TeacherUnavailable):
    """A file did not get through in its time: a smaller one may."""


@dataclass(frozen=True, kw_only=True)
class RemoteBatch:
    """A batch as the provider tells of it. done: calls with an answer or an error; words: what is wrong with it as a whole."""

    id: str
    status: str
    our_id: str = ""
    done: int = 0
    file_ids: Sequence[str] = ()
    words: str = ""


@asynccontextmanager
async def open_batch_api(
    name: str, config: EndpointConfig, *, url: str, guard: AddressGuard | None, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[BatchApi]:
    """The Batch API of an endpoint, for somebody who makes no other calls. guard: which addresses may be connected to; none is no limit.

    Raises ConfigError where the key is missing.
    """
    import httpx2
    import openai

    from trainer.transport import Transport

    key = key_of(name, config, environ)
    http = httpx2.AsyncClient(follow_redirects=False, transport=Transport(guard, limits=httpx2.Limits()))
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=http) as client:
        yield BatchApi(name, lambda: config, client)


class BatchApi:
    """The Batch API of one endpoint. Raises ConfigError, TeacherUnavailable and RequestRefused."""

    def __init__(self, name: str, settings: Callable[[], EndpointConfig], client: openai.AsyncOpenAI) -> None:
        """settings: of the endpoint, as they are when they are asked for."""
        self.name = name
        self._settings = settings
        self._client = client

    @property
    def config(self) -> EndpointConfig:
        """The settings as they are now."""
        return self._settings()

    @property
    def lost_s(self) -> float:
        """So long after it was last heard of, a submission is over: it arrived, or never will. Twice what `create` may take."""
        return 2 * CREATE_S

    async def upload(self, batch_id: str, calls: Sequence[Call]) -> str:
        """Send the requests of a batch; gives the file's id. Nothing is begun by it, and nothing paid."""
        content = "".join(line_of(call, self.config) for call in calls).encode("utf-8", "replace")
        async with self._within(self._time_for(len(content)), f"take a file of {_size(len(content))}", late=TooSlow) as timeout:
            file = await self._client.files.create(file=(f"{batch_id}.jsonl", content), purpose="batch", timeout=timeout)
        file_id = getattr(file, "id", None)
        if not isinstance(file_id, str):  # the client hands on whatever comes
            raise ConfigError(f"Endpoint {self.name!r} has no Batch API at {self._client.base_url}. Switch off 'Offers the Batch API'.")
        return file_id

    async def create(self, batch_id: str, file_id: str) -> str:
        """Make a batch of a file; gives the provider's id. After a TeacherUnavailable it may have been made all the same."""
        async with self._within(CREATE_S, "take a batch") as timeout:
            made = await self._client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={OUR_ID: batch_id},
                timeout=timeout,
            )
        return self._read(made).id

    async def find(self, batch: Batch) -> RemoteBatch | None:
        """The batch as the provider has it; None where it never arrived. Raises Gone."""
        if not batch.remote_id:
            return await self._look_for(batch.id)
        found = await self._retrieve(batch.remote_id) or await self._look_for(batch.id)
        if found is None:
            raise Gone(f"The provider does not know batch {batch.remote_id}.")
        return found

    async def _retrieve(self, remote_id: str) -> RemoteBatch | None:
        import openai

        async with self._within(self.config.timeout_s, f"tell of batch {remote_id}") as timeout:
            try:
                return self._read(await self._client.batches.retrieve(remote_id, timeout=timeout))
            except openai.NotFoundError:
                return None

    async def _look_for(self, batch_id: str) -> RemoteBatch | None:
        looked_at = 0
        async with self._within(self.config.timeout_s, "list its batches") as timeout:
            async for listed in self._client.batches.list(limit=100, timeout=timeout):
                remote = self._read(listed)
                if remote.our_id == batch_id:
                    return remote
                looked_at += 1
                if looked_at == LATEST:
                    break
        return None

    async def lines(self, remote: RemoteBatch, file_id: str, *, most_bytes: int) -> list[str]:
        """The lines of a file of a batch that is over. most_bytes: it may have time for. Raises Gone."""
        import openai

        async with self._within(self._time_for(most_bytes), f"send the answers of batch {remote.id}", late=TooSlow) as timeout:
            try:
                content = await self._client.files.content(file_id, timeout=timeout)
            except openai.NotFoundError as error:
                raise Gone(f"The provider does not have file {file_id} of batch {remote.id}: {self.clean(error.message)}") from error
        return [line for line in content.content.decode("utf-8", "replace").split("\n") if line.strip()]

    def clean(self, text: str) -> str:
        """What the provider says, fit to be stored and shown: without our key, which some servers say back."""
        return storable(without_key(text, self._client.api_key))[:LONGEST_REASON]

    def _time_for(self, size: int) -> float:
        return self.config.timeout_s + size / SLOWEST

    def _read(self, told: Any) -> RemoteBatch:
        """Raises TeacherUnavailable where it is no batch: the client hands on whatever comes."""
        remote_id, status = getattr(told, "id", None), getattr(told, "status", None)
        if not isinstance(remote_id, str) or not isinstance(status, str) or not 0 < len(remote_id) <= LONGEST_ID:
            raise TeacherUnavailable(f"Endpoint {self.name!r} answered something that is no batch: {self.clean(str(told))[:200]}")
        counts = getattr(told, "request_counts", None)
        problems = getattr(getattr(told, "errors", None), "data", None)
        metadata = getattr(told, "metadata", None)
        files = [getattr(told, "output_file_id", None), getattr(told, "error_file_id", None)]
        return RemoteBatch(
            id=remote_id,
            status=status,
            our_id=str(metadata.get(OUR_ID, "")) if isinstance(metadata, Mapping) else "",
            done=sum(count for name in ("completed", "failed") if isinstance(count := getattr(counts, name, 0), int) and 0 < count < 10**6),
            file_ids=[file_id for file_id in files if isinstance(file_id, str) and file_id],
            words=self.clean(" ".join(_messages(problems))),
        )

    @asynccontextmanager
    async def _within(
        self, seconds: float, what: str, *, late: Callable[[str], TeacherUnavailable] = TeacherUnavailable
    ) -> AsyncIterator[httpx2.Timeout]:
        """Time for one request, with its errors explained; the client's own clock runs for the connection alone.

        late: what it is to take longer.
        """
        import httpx2
        import openai

        try:
            async with asyncio.timeout(seconds):
                yield httpx2.Timeout(None, connect=self.config.connect_timeout_s)
        except TimeoutError:
            raise late(f"Endpoint {self.name!r} did not {what} within {seconds:.0f} s.") from None
        except openai.APIError as error:
            raise explain(self.name, str(self._client.base_url), self.config, error, key=self._client.api_key) from error


def line_of(call: Call, config: EndpointConfig) -> str:
    """The line of a call in the file of a batch."""
    line = {"custom_id": call.key, "method": "POST", "url": "/v1/chat/completions", "body": body_of(call.request, config)}
    return json.dumps(line, separators=(",", ":")) + "\n"


def is_too_much(problem: Exception) -> bool:
    """Whether a smaller batch may get through where this one did not."""
    return isinstance(problem, TooSlow | RequestRefused)


def _messages(problems: Any) -> list[str]:
    found = [getattr(problem, "message", None) for problem in problems] if isinstance(problems, list) else []
    return [str(message) for message in found if message]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
