"""OpenAI's Batch API in the offline teacher: files of requests, batches of them, files of their answers.

A batch moves on by the clock alone: whoever asks after it, or for the counts, first brings it up to now. Its lines are answered
evenly over the time that it is in progress, so that a batch that is cancelled has some of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import uuid4

from trainer.demo.batch_lines import ENDPOINT, Line, Problem, problem, read_lines, write_lines
from trainer.demo.chat import MODEL, answer, check_request
from trainer.demo.draws import digest_of, share
from trainer.demo.http import FormField, Refused, error_body, parse_json
from trainer.demo.knobs import Knobs
from trainer.demo.ledger import Ledger

WINDOW, WINDOW_S = "24h", 24 * 3600
VALIDATING_SHARE, FINALIZING_SHARE = 0.1, 0.1
"""Of the time that a batch takes; the rest of it is in progress. Cancelling takes as long as finalizing."""


class State(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


WITH_RESULTS = frozenset({State.COMPLETED, State.EXPIRED, State.CANCELLED})
OVER = WITH_RESULTS | {State.FAILED}


@dataclass(frozen=True, kw_only=True)
class File:
    """A file somebody sent, or one of a batch's own."""

    id: str
    content: bytes
    name: str
    purpose: str
    created_at: int

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(kw_only=True)
class Batch:
    """A batch as it stands. moments: when it came to each state, in seconds of the wall clock; asked: lines that had their turn."""

    id: str
    input_file_id: str
    metadata: Mapping[str, str]
    created: float
    lines: list[Line]
    problems: list[Problem]
    state: State = State.VALIDATING
    moments: dict[State, float] = field(default_factory=dict)
    asked: int = 0
    answered: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    undone: list[Line] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None

    def come_to(self, state: State, at: float) -> None:
        self.state = state
        self.moments[state] = at

    def shown(self) -> dict[str, Any]:
        moments = {f"{state}_at": int(self.moments[state]) if state in self.moments else None for state in State}
        del moments["validating_at"]  # it begins when it is created
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": {"object": "list", "data": self.problems} if self.state is State.FAILED else None,
            "input_file_id": self.input_file_id,
            "completion_window": WINDOW,
            "status": self.state,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created),
            "expires_at": int(self.created) + WINDOW_S,
            **moments,
            "request_counts": {"total": len(self.lines), "completed": len(self.answered), "failed": len(self.failed)},
            "metadata": self.metadata or None,
        }


class Batches:
    """Files and batches, in memory. `now` is the wall clock in seconds: what is shown is brought up to it."""

    def __init__(self, knobs: Knobs, ledger: Ledger) -> None:
        self._knobs = knobs
        self._ledger = ledger
        self._files: dict[str, File] = {}
        self._batches: dict[str, Batch] = {}
        self._attempts: Counter[bytes] = Counter()

    def add_file(self, form: Mapping[str, FormField], now: float) -> dict[str, Any]:
        """Keep a file of requests. Raises Refused where the form lacks one, or is for another purpose."""
        if "file" not in form or "purpose" not in form or form["purpose"].content != b"batch":
            raise Refused(400, "invalid_value", "Send a 'file' with the 'purpose' batch.")
        return self._keep(form["file"].content, name=form["file"].filename, purpose="batch", now=now).shown()

    def file(self, file_id: str) -> File:
        """Raises Refused where there is none of this id."""
        if file_id not in self._files:
            raise Refused(404, "not_found", f"There is no file {file_id!r}.")
        return self._files[file_id]

    def add(self, body: bytes, now: float) -> dict[str, Any]:
        """Take a batch in. What is wrong with its lines comes out when it is validated. Raises Refused where it is no batch."""
        wanted = _read_wish(body)
        file = self.file(wanted["input_file_id"])
        batch_id = f"batch_{uuid4().hex[:24]}"
        lines, problems = read_lines(file.content, batch_id)
        problems = problems or self._refusal(lines, now)
        self._batches[batch_id] = Batch(
            id=batch_id, input_file_id=file.id, metadata=wanted.get("metadata") or {}, created=now, lines=lines, problems=problems
        )
        return self.shown(batch_id, now)

    def _refusal(self, lines: Sequence[Line], now: float) -> list[Problem]:
        """What is said, on purpose, against a batch without a fault."""
        if self._knobs.batch_refused:
            return [problem("refused", "The offline teacher refuses each batch on purpose (batch_refused).")]
        if not self._knobs.batch_tokens:
            return []
        self.bring_all_up_to(now)
        others = [line for batch in self._batches.values() if batch.state not in OVER and not batch.problems for line in batch.lines]
        if sum(self._tokens_of(line) for line in (*lines, *others)) <= self._knobs.batch_tokens:
            return []
        told = f"Enqueued token limit reached for {MODEL}. Limit: {self._knobs.batch_tokens:,.0f} enqueued tokens."
        return [problem("token_limit_exceeded", f"{told} Please try again once some in_progress batches have been completed.")]

    def _tokens_of(self, line: Line) -> int:
        """0 for a line that cannot be answered."""
        try:
            return answer(check_request(line.body, self._knobs), self._knobs).tokens
        except Refused:
            return 0

    def shown(self, batch_id: str, now: float) -> dict[str, Any]:
        """A batch. Raises Refused where there is none of this id."""
        return self._up_to(batch_id, now).shown()

    def listed(self, *, limit: int, after: str, now: float) -> dict[str, Any]:
        """At most `limit` batches, the newest first; `after` is the last one of the page before."""
        ids = list(reversed(self._batches))
        if after:
            ids = ids[ids.index(self._up_to(after, now).id) + 1 :]
        page = [self.shown(batch_id, now) for batch_id in ids[:limit]]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"object": "list", "data": page, **ends, "has_more": len(ids) > limit}

    def cancel(self, batch_id: str, now: float) -> dict[str, Any]:
        """Raises Refused where it is over, or about to be."""
        batch = self._up_to(batch_id, now)
        if batch.state not in (State.VALIDATING, State.IN_PROGRESS):
            raise Refused(409, "conflict", f"A batch that is {batch.state} cannot be cancelled.")
        batch.come_to(State.CANCELLING, now)
        return batch.shown()

    def bring_all_up_to(self, now: float) -> None:
        for batch_id in self._batches:
            self._up_to(batch_id, now)

    def _up_to(self, batch_id: str, now: float) -> Batch:
        """The batch, after every state that was due by now."""
        if batch_id not in self._batches:
            raise Refused(404, "not_found", f"There is no batch {batch_id!r}.")
        batch = self._batches[batch_id]
        while batch.state not in OVER:
            due, state = self._next(batch)
            if batch.state is State.IN_PROGRESS:
                self._answer_lines(batch, until=self._lines_due(batch, min(now, due)))
            if now < due:
                break
            batch.come_to(state, due)
            if state in WITH_RESULTS:
                self._keep_results(batch, due)
        return batch

    def _next(self, batch: Batch) -> tuple[float, State]:
        """The state that follows, and when."""
        takes_s = self._knobs.batch_s
        if batch.state is State.VALIDATING:
            return batch.created + VALIDATING_SHARE * takes_s, State.FAILED if batch.problems else State.IN_PROGRESS
        if batch.state is State.IN_PROGRESS:
            return batch.created + (1 - FINALIZING_SHARE) * takes_s, State.FINALIZING
        if batch.state is State.FINALIZING:
            return batch.created + takes_s, State.EXPIRED if batch.undone else State.COMPLETED
        return batch.moments[State.CANCELLING] + FINALIZING_SHARE * takes_s, State.CANCELLED

    def _lines_due(self, batch: Batch, now: float) -> int:
        began, ends = batch.moments[State.IN_PROGRESS], self._next(batch)[0]
        return len(batch.lines) if now >= ends else int(len(batch.lines) * (now - began) / (ends - began))

    def _answer_lines(self, batch: Batch, *, until: int) -> None:
        for line in batch.lines[batch.asked : until]:
            try:
                self._answer_line(batch, line)
            except Refused as refused:
                batch.failed.append(line.result(refused.status, refused.body))
        batch.asked = until

    def _answer_line(self, batch: Batch, line: Line) -> None:
        request = check_request(line.body, self._knobs)
        digest = digest_of(request, self._knobs.seed)
        self._attempts[digest] += 1
        attempt = self._attempts[digest]
        if share(digest, f"expires {attempt}") < self._knobs.batch_expires:
            batch.undone.append(line)
        elif attempt == 1 and share(digest, "batch failed") < self._knobs.batch_failed:
            told = error_body(500, "server_error", "The offline teacher failed on purpose (batch_failed).")
            batch.failed.append(line.result(500, told))
        else:
            found = answer(request, self._knobs)
            self._ledger.charge(found, batch=True)
            batch.answered.append(line.result(200, found.completion(self._knobs)))

    def _keep_results(self, batch: Batch, now: float) -> None:
        """Write the files of a batch that is over; what a cancelled one had not come to is in neither."""
        errors = batch.failed + ([line.expired() for line in batch.undone] if batch.state is State.EXPIRED else [])
        if batch.answered:
            output = self._keep(write_lines(batch.answered), name=f"{batch.id}_output.jsonl", purpose="batch_output", now=now)
            batch.output_file_id = output.id
        if errors:
            batch.error_file_id = self._keep(write_lines(errors), name=f"{batch.id}_error.jsonl", purpose="batch_output", now=now).id

    def _keep(self, content: bytes, *, name: str, purpose: str, now: float) -> File:
        file = File(id=f"file-{uuid4().hex[:24]}", content=content, name=name, purpose=purpose, created_at=int(now))
        self._files[file.id] = file
        return file


def _read_wish(body: bytes) -> dict[str, Any]:
    """The body of POST /v1/batches. Raises Refused as OpenAI's API would."""
    wanted = parse_json(body)
    if not isinstance(wanted, dict) or not isinstance(wanted.get("input_file_id"), str):
        raise Refused(400, "missing_required_parameter", "'input_file_id' must name a file.")
    if wanted.get("endpoint") != ENDPOINT:
        raise Refused(400, "invalid_value", f"'endpoint' must be {ENDPOINT!r}.")
    if wanted.get("completion_window") != WINDOW:
        raise Refused(400, "invalid_value", f"'completion_window' must be {WINDOW!r}.")
    if not _is_metadata(wanted.get("metadata")):
        raise Refused(400, "invalid_value", "'metadata' must be an object of at most 16 texts.")
    return wanted


def _is_metadata(metadata: Any) -> bool:
    if metadata is None:
        return True
    return isinstance(metadata, dict) and len(metadata) <= 16 and all(isinstance(value, str) for value in metadata.values())
