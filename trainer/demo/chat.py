"""A chat request, checked as OpenAI would, and its answer: the role's reply in the form, the length and the faults asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.demo.draws import digest_of, share
from trainer.demo.http import Refused
from trainer.demo.knobs import Knobs
from trainer.demo.play import play

MODEL = "offline-teacher"


@dataclass(frozen=True)
class Answer:
    """A role's reply to a request; tokens are words. cut: by `cut_rate`, not by the request's own limit."""

    digest: bytes
    role: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def completion(self, knobs: Knobs) -> dict[str, Any]:
        """The chat completion around the reply."""
        message = {"role": "assistant", "content": self.text}
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": self.tokens}
        return {
            "id": f"chatcmpl-{self.digest.hex()[:24]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": None}],
            **({} if knobs.no_usage else {"usage": usage}),
        }


def check_request(request: Any, knobs: Knobs) -> dict[str, Any]:
    """The request where it can be answered. Raises Refused as OpenAI's API would."""
    if not isinstance(request, dict) or not _are_messages(request.get("messages")):
        raise Refused(400, "invalid_messages", "'messages' must be a list of at least one object with the texts 'role' and 'content'.")
    if request.get("model") != MODEL:
        raise Refused(404, "model_not_found", f"There is no model {request.get('model')!r} here, only {MODEL!r}.")
    if request.get("stream") or request.get("n") not in (None, 1):
        raise Refused(400, "unsupported", "The offline teacher answers once and whole: leave out 'stream' and 'n'.")
    for name in ("max_tokens", "max_completion_tokens"):
        if request.get(name) is not None and (not isinstance(request[name], int) or request[name] < 1):
            raise Refused(400, "invalid_value", f"'{name}' must be a whole number of at least 1.")
    if request.get("response_format") is not None:
        _check_format(request["response_format"], request["messages"], knobs)
    return request


def answer(request: Mapping[str, Any], knobs: Knobs) -> Answer:
    """The answer to a checked request. Raises Refused where a referee's prompt cannot be read."""
    digest = digest_of(request, knobs.seed)
    messages = request["messages"]
    structured = (request.get("response_format") or {}).get("type", "text") != "text"
    role, text = play(messages, digest, knobs, structured=structured)
    prompt_tokens = sum(len(message["content"].split()) for message in messages)
    if knobs.cut_rate and share(digest, "cut") < knobs.cut_rate:
        text = text[: len(text) // 2]
        return Answer(digest, role, text, "length", prompt_tokens, len(text.split()), cut=True)
    words = text.split()
    most = request.get("max_completion_tokens") or request.get("max_tokens") or len(words)
    if len(words) > most:
        return Answer(digest, role, " ".join(words[:most]), "length", prompt_tokens, most)
    return Answer(digest, role, text, "stop", prompt_tokens, len(words))


def _are_messages(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages)
    )


def _check_format(wanted: Any, messages: list[dict[str, str]], knobs: Knobs) -> None:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if knobs.refuse_structured or kind not in ("text", "json_object", "json_schema"):
        raise Refused(400, "invalid_value", f"The response_format {kind!r} is not supported here.")
    if kind == "json_schema" and not _is_schema(wanted.get("json_schema")):
        raise Refused(400, "invalid_value", "The response_format 'json_schema' needs a 'json_schema' with a 'name' and a 'schema'.")
    if kind == "json_object" and not any("json" in message["content"].casefold() for message in messages):
        raise Refused(400, "invalid_value", "The response_format 'json_object' needs the word JSON in a message.")


def _is_schema(schema: Any) -> bool:
    return isinstance(schema, dict) and isinstance(schema.get("name"), str) and isinstance(schema.get("schema"), dict)
