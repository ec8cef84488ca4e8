"""A worker of a benchmark: makes calls through our client on the shared Postgres for so many seconds, then says when they were answered.

`python -m tests.bench.caller URL NUMBER SECONDS`: prints "ready", waits for a line on stdin, and prints one JSON object at the end.
`Callers` is the side of the benchmark.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import django

from tests import stack


class Callers:
    """Workers, each a process. Once made they are all ready, and none has made a call."""

    def __init__(self, number: int, url: str, *, seconds: float) -> None:
        """Raises RuntimeError for one that ends before it is ready; what it says on stderr tells why."""
        commands = [[sys.executable, "-m", "tests.bench.caller", url, str(worker), str(seconds)] for worker in range(number)]
        self._processes = [
            subprocess.Popen(command, cwd=stack.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
        ]
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a caller ended with code {process.wait()} before it was ready")

    def go(self) -> None:
        """All begin to call."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def answered_at(self) -> list[float]:
        """When each call was answered that was while they were at it, in order, seconds since the epoch; waits until they are done.

        Raises RuntimeError for one that broke.
        """
        printed = [process.communicate()[0] for process in self._processes]
        if broken := [process.returncode for process in self._processes if process.returncode]:
            raise RuntimeError(f"{len(broken)} callers broke, the first with code {broken[0]}")
        return sorted(at for text in printed for at in json.loads(text)["answered_at"])


async def call_for(url: str, worker: int, seconds: float) -> list[float]:
    """When the calls of one worker were answered that always has more to ask."""
    from experiments.services.calls import PostgresCalls
    from tests.bench.calls import messages_of
    from trainer.completions import Endpoint
    from trainer.config import EndpointConfig, RoleConfig, RunConfig
    from trainer.demo.chat import MODEL

    config = EndpointConfig(base_url=url, model=MODEL, key_env="", max_at_once=64)
    answered_at: list[float] = []
    async with Endpoint("offline", config, PostgresCalls(RunConfig(endpoints={"offline": config}))) as endpoint:

        async def go_on(lane: int) -> None:
            at = lane
            while True:
                await endpoint.complete("teacher", messages_of(f"worker {worker}", lane, at), RoleConfig(endpoint="offline"))
                answered_at.append(time.time())
                at += 1_000

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        lanes = [asyncio.create_task(go_on(lane)) for lane in range(128)]
        await asyncio.wait(lanes, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        counted = len(answered_at)
        for lane in lanes:
            lane.cancel()
        outcomes = await asyncio.gather(*lanes, return_exceptions=True)
    for error in outcomes:
        if isinstance(error, Exception):
            raise error
    return answered_at[:counted]


def main(url: str, worker: str, seconds: str) -> None:
    django.setup()
    print(json.dumps({"answered_at": asyncio.run(call_for(url, int(worker), float(seconds)))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
