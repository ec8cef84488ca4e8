"""Calls through our client, each looked up first and durable after, against a bare client that keeps its answers in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic

from tests.bench.place import database
from tests.bench.report import Bar, Figure, in_turn
from trainer.batching import for_each
from trainer.completions import Endpoint
from trainer.config import EndpointConfig, RoleConfig, RunConfig
from trainer.demo.chat import MODEL
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher

LATENCY_MS = 50
AT_ONCE = 64
CALLS = 1000


def measure() -> Iterator[Figure]:
    with database(), OfflineTeacher(Knobs(latency_ms=LATENCY_MS)) as teacher:
        url = teacher.base_url
        pair = in_turn(lambda n: asyncio.run(through_ours(url, n)), lambda n: asyncio.run(through_bare(url, n)), unit=" calls/s")
    against = f"AsyncOpenAI with a semaphore, answers in memory: {pair.theirs:.0f} calls/s"
    yield Figure(
        name="calls", value=pair.ours, unit="calls/s", bar=Bar(at_least=250, ratio_at_least=0.9), against=against, ratio=pair.ratio
    )


def messages_of(side: str, number: int, call: int) -> list[dict[str, str]]:
    """A request that nobody made before, of a length that real ones have."""
    text = f"{side} {number} {call}: " + "Say in a few words what the following paragraph is about. " * 8
    return [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]


async def through_ours(url: str, number: int) -> float:
    """Calls per second of the client that the steps use, on the store in Postgres."""
    from experiments.services.calls import PostgresCalls

    config = EndpointConfig(base_url=url, model=MODEL, key_env="", max_at_once=AT_ONCE, send_seed=True)
    role = RoleConfig(endpoint="offline")
    calls = PostgresCalls(RunConfig(endpoints={"offline": config}))
    async with Endpoint("offline", config, calls) as endpoint:

        async def call(at: int) -> None:
            await endpoint.complete("teacher", messages_of("ours", number, at), role)

        started = monotonic()
        await for_each(range(CALLS), call, at_once=2 * AT_ONCE)
        assert endpoint.asked == CALLS
        return CALLS / (monotonic() - started)


async def through_bare(url: str, number: int) -> float:
    """Calls per second of what one writes in ten lines; a crash would lose every answer."""
    import openai

    answers: dict[int, str | None] = {}
    slots = asyncio.Semaphore(AT_ONCE)
    role = RoleConfig()
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

        async def call(at: int) -> None:
            async with slots:
                reply = await client.chat.completions.create(
                    model=MODEL,
                    messages=messages_of("bare", number, at),  # type: ignore[arg-type]  # plain dicts for its many typed ones
                    temperature=role.temperature,
                    top_p=role.top_p,
                    max_tokens=role.max_tokens,
                    seed=0,
                )
            answers[at] = reply.choices[0].message.content

        started = monotonic()
        await asyncio.gather(*map(call, range(CALLS)))
        assert len(answers) == CALLS
        return CALLS / (monotonic() - started)
