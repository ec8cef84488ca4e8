"""The roles of a run, opened together on the endpoints its config names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trainer.addresses import AddressGuard
from trainer.calls import Calls
from trainer.completions import Endpoint
from trainer.config import OFFLINE_URL, RunConfig, referees_of
from trainer.generator import EndpointGenerator
from trainer.referee import EndpointReferee, Panel
from trainer.teacher import EndpointTeacher


@dataclass(frozen=True)
class EndpointRoles:
    """Teacher, referees and generator; `endpoints` are the ones behind them, with their counts of calls."""

    teacher: EndpointTeacher
    referee: Panel
    generator: EndpointGenerator
    endpoints: Mapping[str, Endpoint]


@asynccontextmanager
async def open_roles(
    config: RunConfig,
    calls: Calls,
    *,
    offline_url: str = "",
    guard: AddressGuard | None = None,
    environ: Mapping[str, str] = os.environ,
    on_pause: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[EndpointRoles]:
    """Open every endpoint a role uses, and close them at the end. Raises ConfigError where a key is missing.

    offline_url: where the offline teacher is at this time; a config only says that it wants it. guard: holds for all others.
    """
    referees = referees_of(config)
    names = {config.teacher.endpoint, config.generator.endpoint, *referees}
    async with AsyncExitStack() as stack:
        endpoints = {}
        for name in sorted(names):
            offline = config.endpoints[name].base_url == OFFLINE_URL
            endpoint = Endpoint(
                name,
                config.endpoints[name],
                calls,
                url=offline_url if offline else "",
                guard=None if offline else guard,
                environ=environ,
                on_pause=on_pause,
                on_wait=on_wait,
            )
            endpoints[name] = await stack.enter_async_context(endpoint)
        yield EndpointRoles(
            teacher=EndpointTeacher(endpoints[config.teacher.endpoint], config.teacher),
            referee=Panel(
                {name: EndpointReferee(endpoints[name], config.referee, samples=config.discrimination.samples) for name in referees}
            ),
            generator=EndpointGenerator(endpoints[config.generator.endpoint], config.generator),
            endpoints=endpoints,
        )
