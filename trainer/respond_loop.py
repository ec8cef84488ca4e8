"""The loop that writes responses token by token: a row leaves when it has ended, and a prompt that waits takes its place.

Departures from the library's `generate`, whose batch runs on until its longest response ends:
1. Rows that ended are taken out of the cache, together with the columns that only they filled.
2. When a quarter of the rows have ended, prompts that wait are read in one go and join; all rows are right-aligned.
3. Where memory runs out, the rows go back to the queue, half as many are answered at once until the group's end, and it goes on. A row
   that begins again draws the same noise again, so its text is the same.

Imports torch: for the process that has the student.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.errors import Cancelled, OutOfMemory
from trainer.models import memory_errors
from trainer.respond_cache import join, new_cache, replace_rows

logger = logging.getLogger(__name__)

REFILL_SHARE = 4
"""Prompts join when one in so many rows has ended: reading a few at a time would cost more than the empty rows."""
LEAVE_SHARE = 8
"""Without prompts that wait, rows leave when one in so many has ended: the cache is copied for it."""
MOST_READ = 16_384
"""Tokens of prompts, padding included, that are read in one go."""


@dataclass
class Row:
    """One prompt that is answered. limit: new tokens at most; ids: those written so far; seed: of its noise, drawn on the device."""

    at: int
    prompt: Sequence[int]
    limit: int
    seed: int
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    generator: torch.Generator | None = None

    def begin(self, where: torch.device) -> None:
        """Forget what was written, as if never asked. where: the device that draws."""
        self.ids, self.ended = [], False
        self.generator = torch.Generator(where).manual_seed(self.seed)

    @property
    def length(self) -> int:
        """Tokens the cache holds of it: the last one that was written has yet to be read."""
        return len(self.prompt) + len(self.ids) - 1


class ResponseLoop:
    """Answers groups of prompts with one model. `on_end` is told each row as it ends; should_stop is asked between steps."""

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        temperature: float,
        on_end: Callable[[Row], None],
        should_stop: Callable[[], bool],
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        """temperature 0: greedy. tell: hears of memory that ran out."""
        self._model = model
        self._takes = set(inspect.signature(model.forward).parameters)
        self._stop_ids = frozenset(stop_ids)
        self._pad_id = pad_id
        self._temperature = temperature
        self._on_end = on_end
        self._should_stop = should_stop
        self._tell = tell
        self._rows: list[Row] = []
        self._cache: Any = None
        self.steps = 0
        self.row_steps = 0
        """Steps, and rows in them: what leaving early saves is seen by these."""

    def answer(self, rows: Sequence[Row], at_once: int) -> None:
        """Answer all rows, `at_once` at a time. Raises Cancelled, and OutOfMemory where not even one row fits."""
        waiting = deque(rows)
        self._rows, self._cache = [], None
        with torch.inference_mode():
            while waiting or self._rows:
                if self._should_stop():
                    raise Cancelled("Stopped while the student was answering. What is kept stays kept; the stage can go on later.")
                try:
                    with memory_errors("a batch of responses."):
                        self._advance(waiting, at_once)
                except OutOfMemory:
                    at_once = self._fewer(waiting, at_once)

    def _advance(self, waiting: deque[Row], at_once: int) -> None:
        """One step of all rows, those that join and leave included."""
        going = sum(not row.ended for row in self._rows)
        if waiting and going <= at_once - max(1, at_once // REFILL_SHARE):
            self._read(waiting, at_once - going)
        elif not waiting and len(self._rows) - going >= max(1, len(self._rows) // LEAVE_SHARE):
            self._join(self._cache, [])
        if self._rows:
            self._step()

    def _fewer(self, waiting: deque[Row], at_once: int) -> int:
        """After memory ran out: all rows that go on wait again, and half as many may be answered at once."""
        waiting.extendleft(row for row in reversed(self._rows) if not row.ended)
        self._rows, self._cache = [], None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fewer = at_once // 2
        if fewer == 0:
            raise OutOfMemory("There is not enough memory for one response. Lower respond.max_new_tokens, or choose a smaller student.")
        self._tell(f"Not enough memory for {at_once} responses at once: going on with {fewer}.")
        return fewer

    def _read(self, waiting: deque[Row], count: int) -> None:
        """Read as many prompts as may join, and let them."""
        width = len(waiting[0].prompt)
        count = min(count, max(1, MOST_READ // width), len(waiting))
        fresh = [waiting.popleft() for _ in range(count)]
        try:
            width = max(len(row.prompt) for row in fresh)
            for row in fresh:
                row.begin(self._model.device)
            ids = torch.tensor([[self._pad_id] * (width - len(row.prompt)) + list(row.prompt) for row in fresh])  # (B, T)
            cache = new_cache(self._model)
            logits = self._forward(ids, [len(row.prompt) for row in fresh], cache)
            self._write(fresh, logits)
            if not self._take_places(cache, fresh):
                self._join(cache, fresh)
        except Exception:
            known = {id(row) for row in self._rows}
            waiting.extendleft(row for row in reversed(fresh) if id(row) not in known and not row.ended)
            raise

    def _take_places(self, cache: Any, fresh: list[Row]) -> bool:
        """Let the fresh rows take the places of rows that ended, without a copy of the others; False where they do not fit."""
        begin = [at for at, row in enumerate(fresh) if not row.ended]
        places = [at for at, row in enumerate(self._rows) if row.ended][: len(begin)]
        if not begin or len(places) < len(begin) or cache.get_seq_length() > self._cache.get_seq_length():
            return False
        rows = list(self._rows)
        for place, at in zip(places, begin, strict=True):
            rows[place] = fresh[at]
        needed = max(cache.get_seq_length(), *(row.length for row in rows if not row.ended))
        replace_rows(self._cache, places, cache, begin, left_out=self._cache.get_seq_length() - needed)
        self._rows = rows
        return True

    def _join(self, cache: Any, fresh: list[Row]) -> None:
        """The rows that go on and the fresh ones in one cache; those that ended leave, and their columns with them."""
        stay = [at for at, row in enumerate(self._rows) if not row.ended]
        going = [self._rows[at] for at in stay]
        begin = [at for at, row in enumerate(fresh) if not row.ended]
        columns = max((row.length for row in [*going, *(fresh[at] for at in begin)]), default=0)
        parts: list[tuple[Any, list[int] | None, int]] = []
        for part, chosen, rows in ((self._cache, stay, self._rows), (cache, begin, fresh)):
            if chosen:
                held = part.get_seq_length()
                parts.append((part, None if len(chosen) == len(rows) else chosen, max(0, held - columns)))
        if parts and not (len(parts) == 1 and parts[0][1] is None and parts[0][2] == 0):
            join(parts, columns)
        self._rows = [*going, *(fresh[at] for at in begin)]
        self._cache = parts[0][0] if parts else None

    def _step(self) -> None:
        ids = torch.tensor([[row.ids[-1]] for row in self._rows])  # (B, 1)
        # A row that ended stays for a while and goes on from its last token; what comes of it is not looked at.
        held = self._cache.get_seq_length() + 1
        lengths = [min(held, row.length + 1) for row in self._rows]
        logits = self._forward(ids, lengths, self._cache)
        self.steps += 1
        self.row_steps += len(self._rows)
        self._write(self._rows, logits)

    def _forward(self, ids: torch.Tensor, lengths: Sequence[int], cache: Any) -> torch.Tensor:
        """Logits of the next token of each row, (B, V). ids: (B, T), right-aligned; lengths: of each row, these ids included."""
        where = self._model.device
        columns = cache.get_seq_length() + ids.shape[1]
        starts = torch.tensor([columns - length for length in lengths])
        mask = torch.arange(columns)[None, :] >= starts[:, None]  # (B, columns)
        positions = (torch.arange(columns - ids.shape[1], columns)[None, :] - starts[:, None]).clamp(min=0)  # (B, T)
        known = {
            "input_ids": ids.to(where),
            "attention_mask": mask.long().to(where),
            "position_ids": positions.to(where),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        output = self._model(**{name: value for name, value in known.items() if name in self._takes})
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _write(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Choose each row's next token, and tell of those that end by it."""
        scores = logits.float()
        if self._temperature > 0:
            noise = torch.ones_like(scores)
            for line, row in zip(noise, rows, strict=True):
                if not row.ended:
                    line.exponential_(generator=row.generator)
            scores = scores / self._temperature - noise.log_()
        for row, token in zip(rows, scores.argmax(-1).tolist(), strict=True):
            if row.ended:
                continue
            row.ids.append(token)
            if token in self._stop_ids or len(row.ids) >= row.limit:
                row.ended = True
                self._on_end(row)
