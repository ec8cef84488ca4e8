"""Ask the offline teacher over HTTP, as one that is not our client would."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx

from trainer import prompts
from trainer.demo.chat import MODEL
from trainer.demo.process import OfflineTeacher

CLIENT = httpx.Client(trust_env=False, timeout=30)


def ask(
    running: OfflineTeacher,
    messages: list[prompts.Message],
    *,
    key: str = "",
    timeout_s: float = 30,
    **parameters: Any,
) -> httpx.Response:
    """One chat completion; `key` is its Idempotency-Key."""
    body = {"model": MODEL, "messages": messages, "max_tokens": 512, **parameters}
    headers = {"Idempotency-Key": key} if key else {}
    return CLIENT.post(f"{running.base_url}/chat/completions", json=body, headers=headers, timeout=timeout_s)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])
