"""Chance that can be repeated: what is drawn for a request comes from its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def digest_of(request: Mapping[str, Any], server_seed: int) -> bytes:
    """32 bytes that depend on the messages, the `seed` parameter and the server's own seed."""
    parts = [str(server_seed), str(request.get("seed")), *(text for m in request["messages"] for text in (m["role"], m["content"]))]
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).digest()


def share(digest: bytes, purpose: str) -> float:
    """A number in 0..1 for one purpose of one request."""
    return int.from_bytes(hashlib.sha256(digest + purpose.encode()).digest()[:7]) / 2**56
