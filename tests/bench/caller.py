"""A worker of a benchmark: makes calls through our client on the shared Postgres for so many seconds, then says how many.

`python -m tests.bench.caller URL NUMBER SECONDS RPM`; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic

import django


async def call_for(url: str, worker: int, seconds: float, rpm: int) -> int:
    """Answered calls of one worker that always has more to ask."""
    from experiments.services.calls import PostgresCalls
    from tests.bench.calls import messages_of
    from trainer.completions import Endpoint
    from trainer.config import EndpointConfig, RoleConfig, RunConfig
    from trainer.demo.chat import MODEL

    config = EndpointConfig(base_url=url, model=MODEL, key_env="", max_at_once=64, rpm=rpm)
    end = monotonic() + seconds
    async with Endpoint("offline", config, PostgresCalls(RunConfig(endpoints={"offline": config}))) as endpoint:

        async def go_on(lane: int) -> None:
            at = lane
            while True:
                await endpoint.complete("teacher", messages_of(f"worker {worker}", lane, at), RoleConfig(endpoint="offline"))
                at += 1_000

        lanes = [asyncio.create_task(go_on(lane)) for lane in range(128)]
        await asyncio.wait(lanes, timeout=end - monotonic(), return_when=asyncio.FIRST_EXCEPTION)
        for lane in lanes:
            lane.cancel()
        outcomes = await asyncio.gather(*lanes, return_exceptions=True)
    for error in outcomes:
        if isinstance(error, Exception):
            raise error
    return endpoint.asked


def main(url: str, worker: str, seconds: str, rpm: str) -> None:
    django.setup()
    print(json.dumps({"answered": asyncio.run(call_for(url, int(worker), float(seconds), int(rpm)))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
