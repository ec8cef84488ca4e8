"""The completions store in Postgres: a call that is answered once is answered for all runs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

from experiments import models
from experiments.services.durable import durably
from trainer.batching import Batcher
from trainer.records import Completion


class PostgresCompletions:
    """Look-ups and writes of many calls at once travel together; a completion is durable when `add` returns."""

    def __init__(self, *, run_id: int | None, executor: Executor) -> None:
        self._run_id = run_id
        self._find: Batcher[str, Completion | None] = Batcher(self._find_many, executor=executor)
        self._add: Batcher[Completion, None] = Batcher(self._add_many, executor=executor)

    async def find(self, key: str) -> Completion | None:
        return await self._find(key)

    async def add(self, completion: Completion) -> None:
        await self._add(completion)

    def _find_many(self, keys: Sequence[str]) -> list[Completion | None]:
        rows = durably(lambda: models.Completion.objects.in_bulk(keys))
        return [_record(rows[key]) if key in rows else None for key in keys]

    def _add_many(self, completions: Sequence[Completion]) -> list[None]:
        rows = [models.Completion(**completion.as_dict(), run_id=self._run_id) for completion in completions]
        durably(lambda: models.Completion.objects.bulk_create(rows, ignore_conflicts=True))
        return [None] * len(completions)


def _record(row: models.Completion) -> Completion:
    return Completion(
        key=row.key,
        endpoint=row.endpoint,
        model=row.model,
        request=row.request,
        text=row.text,
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        latency_s=row.latency_s,
    )
