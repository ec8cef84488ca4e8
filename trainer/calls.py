"""What a paid call is on its way: asked for, permitted, made, done. The contract between the client and where calls are counted.

The client (`trainer.completions.Endpoint`) makes no call that was not permitted, and tells how each one ended. Both happen in turns:
one `turn` brings the ends of some calls and the wish for others, and is one transaction, so that an answer, its place in the
ledger, its share of the budget and the pace of the endpoint can never disagree. Two implementations: `trainer.folder_calls` for a run in
a folder, `experiments.services.calls` for all workers of a team together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from trainer.config import EndpointConfig
from trainer.records import Completion


class Outcome(StrEnum):
    """How one HTTP attempt at a call ended, sorted by what it means for money and for the pace."""

    ANSWERED = "answered"
    """Answered and paid for, whatever the answer is worth."""
    LIMITED = "limited"
    """429: too many requests or tokens; not paid."""
    FAILED = "failed"
    """A 5xx, or nobody listens there: the endpoint is unwell; not paid."""
    UNANSWERED = "unanswered"
    """Sent, and no answer came (time-out, connection lost, worker killed): it may have been paid."""
    REFUSED = "refused"
    """Another 4xx: the endpoint is well and does not want this one; not paid."""
    UNSENT = "unsent"
    """A permission given back: nobody waits for the answer any more, and nothing was sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request as it asks for permission.

    input_tokens: estimate; output_tokens: the most it may be answered with (max_tokens); most_nanodollars: the most it can cost.
    batch: goes by the Batch API, outside the rate limits. request: the canonical request, kept where a batch outlives its worker.
    """

    key: str
    role: str
    input_tokens: int
    output_tokens: int
    most_nanodollars: int = 0
    batch: bool = False
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What a server's headers tell of one of its limits: so many a minute, so many left, whole again in `reset_s` seconds."""

    limit: float
    remaining: float | None = None
    reset_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a reply's headers tell of limits; None where they say nothing. retry_after_s: from Retry-After(-Ms)."""

    requests: Window | None = None
    tokens: Window | None = None
    input_tokens: Window | None = None
    output_tokens: Window | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The end of one permitted attempt. completion: the answer where there is one; error: what went wrong, in words."""

    call: Call
    outcome: Outcome
    completion: Completion | None = None
    told: Told = Told()
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What came of a turn.

    found: answers from the store, by key. permitted: keys that may be called now. Of the rest, ask again after `wait_s` seconds at
    the latest, or when a call of ours ends. refused: no further call may be made, and why (a budget is spent). pause: the endpoint is
    unwell, in words; calls wait until a probe succeeds, and failures are its fault and not the item's. settings: the endpoint's as they
    are now, where they may change while a run is under way. waits_for: whose batch of calls is waited for, in words, "" for none; None
    where nothing was asked for.
    """

    found: Mapping[str, Completion] = field(default_factory=dict)
    permitted: frozenset[str] = frozenset()
    wait_s: float = 1.0
    refused: str = ""
    pause: str = ""
    settings: EndpointConfig | None = None
    waits_for: str | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of calls at a provider. `id` is ours and goes along as metadata; `remote_id` is the provider's, "" until it is known."""

    id: str
    keys: frozenset[str]
    remote_id: str = ""


class Calls(Protocol):
    """Where calls are permitted, counted and kept. Methods block; the client calls them from one thread of its own."""

    def turn(self, endpoint: str, done: Sequence[Done], wanted: Sequence[Call]) -> Turn:
        """End some calls and ask for others, durably and at once. `endpoint` is its name in the run's config.

        A call is permitted to one caller at a time, whoever asks; its key is then found, or permitted anew, once it is done.
        Done calls that were paid are kept even where nobody waits for them any more.
        """
        ...

    def has_answered(self, endpoint: str) -> bool:
        """Whether the endpoint ever answered a call of this run."""
        ...

    def batches(self, endpoint: str) -> list[Batch]:
        """The batches of an endpoint that are not over, of whichever run."""
        ...

    def open_batch(self, endpoint: str, batch_id: str, keys: Sequence[str]) -> None:
        """Durable before anything is submitted: permitted calls now belong to a batch and outlive their worker."""
        ...

    def batch_requests(self, batch_id: str) -> Mapping[str, Call]:
        """The calls of a batch that are not done, by key: whoever comes by can store their answers."""
        ...

    def update_batch(self, batch_id: str, *, remote_id: str = "", state: str = "", done: int | None = None, error: str = "") -> None:
        """What the provider says of a batch: its id, its state, how many calls it has done."""
        ...

    def poll_batch(self, batch_id: str, *, every_s: float) -> bool:
        """Whether it is this caller's turn to ask the provider; True for one of all callers in `every_s` seconds."""
        ...

    def close_batch(self, batch_id: str, *, state: str, error: str = "", lost: bool = False) -> None:
        """The batch is over: what of it was not done may be asked for again.

        lost: its answers may have been made and paid, and cannot be had any more; its calls count as unanswered.
        """
        ...

    def close(self) -> None:
        """Everything is durable; give connections back."""
        ...
