"""The roles of a run, opened together on the endpoints its config names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trainer.completions import Endpoint
from trainer.config import OFFLINE_URL, RunConfig
from trainer.generator import EndpointGenerator
from trainer.referee import EndpointReferee
from trainer.roles import CompletionStore
from trainer.teacher import EndpointTeacher


@dataclass(frozen=True)
class EndpointRoles:
    """Teacher, referee and generator; `endpoints` are the ones behind them, with their counts of calls."""

    teacher: EndpointTeacher
    referee: EndpointReferee
    generator: EndpointGenerator
    endpoints: Mapping[str, Endpoint]


@asynccontextmanager
async def open_roles(
    config: RunConfig, store: CompletionStore, *, offline_url: str = "", environ: Mapping[str, str] = os.environ
) -> AsyncIterator[EndpointRoles]:
    """Open every endpoint a role uses, and close them at the end. Raises ConfigError where a key is missing.

    offline_url: where the offline teacher is at this time; a config only says that it wants it.
    """
    names = {role.endpoint for role in (config.teacher, config.referee, config.generator)}
    async with AsyncExitStack() as stack:
        endpoints = {
            name: await stack.enter_async_context(
                Endpoint(
                    name,
                    config.endpoints[name],
                    store,
                    url=offline_url if config.endpoints[name].base_url == OFFLINE_URL else "",
                    environ=environ,
                )
            )
            for name in sorted(names)
        }
        yield EndpointRoles(
            teacher=EndpointTeacher(endpoints[config.teacher.endpoint], config.teacher),
            referee=EndpointReferee(endpoints[config.referee.endpoint], config.referee),
            generator=EndpointGenerator(endpoints[config.generator.endpoint], config.generator),
            endpoints=endpoints,
        )
