"""Many small asynchronous requests to a slow, blocking place (a database, a disk), served together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects items while an earlier batch is being served, then serves them in one blocking call on the executor.

    `serve` gets the items in order and gives as many results back. An error of `serve` reaches every caller of its batch.
    The faster the place, the smaller the batches: nothing waits for a timer.
    """

    def __init__(
        self, serve: Callable[[Sequence[Item]], Sequence[Result]], *, executor: Executor | None = None, largest: int = 500
    ) -> None:
        self._serve = serve
        self._executor = executor
        self._largest = largest
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(0)  # lets the tasks that are ready now join the first batch
            while self._waiting:
                batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
                await self._serve_batch(batch)
        finally:
            self._running = None

    async def _serve_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._serve, items)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


async def for_each(items: Sequence[Item], work: Callable[[Item], Awaitable[None]], *, at_once: int) -> None:
    """Run `await work(item)` for every item, at most `at_once` at a time; the first error ends all and is raised."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
