"""What the offline teacher counts: calls, faults, and what it would charge for."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from trainer.demo.chat import Answer
from trainer.demo.play import ROLES

FAULTS = ("limited", "errors", "refused", "hung", "reset", "mangled", "cut", "unavailable")


class Ledger:
    """Calls answered and calls charged. A reply is charged when it is made, and kept under its Idempotency-Key where there is one."""

    def __init__(self) -> None:
        self._roles: Counter[str] = Counter(dict.fromkeys(ROLES, 0))
        self._counts: Counter[str] = Counter()
        self._answered: set[bytes] = set()
        self._replies: dict[bytes, bytes] = {}

    def find(self, idempotency_key: bytes) -> bytes | None:
        """The reply that was charged under this key."""
        return self._replies.get(idempotency_key) if idempotency_key else None

    def charge(self, answer: Answer, *, idempotency_key: bytes = b"", reply: bytes = b"", batch: bool = False) -> None:
        self._counts["charged"] += 1
        self._counts["batch_calls"] += batch
        self._counts["prompt_tokens"] += answer.prompt_tokens
        self._counts["completion_tokens"] += answer.completion_tokens
        self._counts["cut"] += answer.cut
        if idempotency_key:
            self._replies[idempotency_key] = reply

    def answer(self, role: str, request: bytes, *, replayed: bool) -> None:
        """Count an answer; `request` tells one request from another."""
        self._roles[role] += 1
        self._counts["replayed"] += replayed
        self._answered.add(hashlib.blake2b(request, digest_size=16).digest())

    def count(self, what: str) -> None:
        """Count a fault, one of FAULTS."""
        self._counts[what] += 1

    def stats(self) -> dict[str, Any]:
        """calls: answered by role. distinct, repeated: of those, by Idempotency-Key or else body.

        charged, prompt_tokens, completion_tokens: what was made and not replayed, batch_calls among it. cut: replies that `cut_rate` cut.
        """
        answered = sum(self._roles.values())
        counted = ("charged", "replayed", "batch_calls", "prompt_tokens", "completion_tokens", *FAULTS)
        return {
            "calls": dict(self._roles),
            "answered": answered,
            "distinct": len(self._answered),
            "repeated": answered - len(self._answered),
            **{name: self._counts[name] for name in counted},
        }
