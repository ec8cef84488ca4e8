"""Where the calls of a run in a folder are permitted, counted and kept, for one process alone.

`completions.jsonl` has the answers, `attempts.jsonl` beside it what was permitted: a budget holds over restarts and kills.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.attempts import Attempts
from trainer.budget import Purse
from trainer.calls import Batch, Call, Done, Outcome, Turn
from trainer.config import EndpointConfig
from trainer.errors import ConfigError
from trainer.jsonl import read_jsonl, write_jsonl
from trainer.pacing import Pace
from trainer.records import Completion

BUSY_WAIT_S = 0.1
NO_BATCHES = "Batch mode needs the web version: the command line makes its calls one by one. Turn batch off."

UNPAID = frozenset({Outcome.LIMITED, Outcome.FAILED, Outcome.REFUSED, Outcome.UNSENT})


@dataclass
class _Server:
    """An endpoint as this process sees it: its pace, and the calls that are on their way."""

    config: EndpointConfig
    pace: Pace = field(default_factory=Pace)
    under_way: dict[str, Call] = field(default_factory=dict)


class FolderCalls:
    """The calls of one run in one process: an index in memory over a file of completions, and a budget where one is set."""

    def __init__(
        self,
        path: Path | None,
        endpoints: Mapping[str, EndpointConfig],
        *,
        most_calls: int | None = None,
        most_nanodollars: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """path: the file of answers, or None to keep nothing beyond this object."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._kept = {record["key"]: Completion(**record) for record in read_jsonl(path)} if path else {}
        self._attempts = Attempts(path.with_name("attempts.jsonl") if path else None)
        self._servers = {name: _Server(config) for name, config in endpoints.items()}
        self._purse = Purse(
            owner="this run",
            most_calls=most_calls,
            most_nanodollars=most_nanodollars,
            spent_calls=len(self._kept),
            spent_nanodollars=sum(completion.nanodollars for completion in self._kept.values()),
        )
        self.unanswered: Counter[str] = Counter()
        for attempt in self._attempts.unanswered(self._kept):
            self._count_unanswered(attempt.role, attempt.most_nanodollars)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> list[Completion]:
        return list(self._kept.values())

    @property
    def nanodollars(self) -> int:
        return self._purse.spent_nanodollars

    def turn(self, endpoint: str, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        if any(call.batch for call in wanted):  # before anything is permitted, and counted
            raise ConfigError(NO_BATCHES)
        with self._lock:
            server, now = self._servers[endpoint], self._clock()
            self._end(server, done)
            server.pace.settle(done, limits=server.config, now=now)
            turn, permitted = self._begin(server, wanted, now)
            self._attempts.note(permitted=permitted, unpaid=[end.call for end in done if end.outcome in UNPAID])
            return turn

    def _end(self, server: _Server, done: Sequence[Done]) -> None:
        answers = [end.completion for end in done if end.completion is not None]
        fresh = {answer.key: answer for answer in reversed(answers) if answer.key not in self._kept}
        if self._path and fresh:
            write_jsonl(self._path, (completion.as_dict() for completion in fresh.values()), append=True)
        for end in done:
            if (call := server.under_way.pop(end.call.key, None)) is not None:
                self._purse.give_back(call)
            if end.outcome is Outcome.UNANSWERED:  # it may have been paid: the budget takes it as if it had
                self._count_unanswered(end.call.role, end.call.most_nanodollars)
            elif end.completion is not None:
                self._count_answer(end.completion)

    def _count_answer(self, completion: Completion) -> None:
        """Keep an answer in memory. A second one to the same call was paid as well, and nobody has it: it counts as unanswered."""
        if completion.key in self._kept:
            self._count_unanswered(completion.role, completion.nanodollars)
            return
        self._kept[completion.key] = completion
        self._purse.spent_calls += 1
        self._purse.spent_nanodollars += completion.nanodollars

    def _count_unanswered(self, role: str, nanodollars: int) -> None:
        self.unanswered[role] += 1
        self._purse.spent_calls += 1
        self._purse.spent_nanodollars += nanodollars

    def _begin(self, server: _Server, wanted: Sequence[Call], now: float) -> tuple[Turn, list[Call]]:
        """What comes of a wish for calls, and those that are permitted."""
        found = {call.key: self._kept[call.key] for call in wanted if call.key in self._kept}
        free = [call for call in wanted if call.key not in found and call.key not in server.under_way]
        affordable: list[Call] = []
        for call in free:
            if not self._purse.take(call):
                break
            affordable.append(call)
        admission = server.pace.admit(affordable, limits=server.config, in_flight=len(server.under_way), now=now)
        for call in affordable[admission.count :]:
            self._purse.give_back(call)
        permitted = affordable[: admission.count]
        server.under_way |= {call.key: call for call in permitted}
        refused = self._purse.refusal(free[len(affordable)]) if len(affordable) < len(free) else ""
        turn = Turn(
            found=found,
            permitted=frozenset(call.key for call in permitted),
            wait_s=admission.wait_s if len(free) == len(affordable) else BUSY_WAIT_S,
            refused=refused,
            pause=admission.pause,
        )
        return turn, permitted

    def has_answered(self, endpoint: str) -> bool:
        return any(completion.endpoint == endpoint for completion in self._kept.values())

    def batches(self, endpoint: str) -> list[Batch]:
        return []

    def open_batch(self, endpoint: str, batch_id: str, keys: Sequence[str]) -> None:
        raise ConfigError(NO_BATCHES)

    def batch_requests(self, batch_id: str) -> dict[str, Call]:
        return {}

    def update_batch(self, batch_id: str, *, remote_id: str = "", state: str = "", done: int | None = None, error: str = "") -> None:
        raise ConfigError(f"There is no batch {batch_id} in this folder.")

    def poll_batch(self, batch_id: str, *, every_s: float) -> bool:
        return False

    def close_batch(self, batch_id: str, *, state: str, error: str = "", lost: bool = False) -> None:
        raise ConfigError(f"There is no batch {batch_id} in this folder.")

    def close(self) -> None:
        """Nothing is open between turns."""
