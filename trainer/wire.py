"""Requests and replies of the chat completions API as data: what is asked, under which key it is kept, what an answer says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from trainer.calls import Call
from trainer.config import EndpointConfig, RoleConfig
from trainer.errors import ResponseFormatError
from trainer.prices import cost, likely_tokens, most_tokens
from trainer.records import NO_REASON, Completion
from trainer.text import storable

Schema = Mapping[str, Any]

MOST_TOKENS = 1_000_000_000


def completion_key(request: Mapping[str, Any]) -> str:
    """The content address of a canonical request: sha256 over its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def request_of(
    endpoint: str,
    config: EndpointConfig,
    role: RoleConfig,
    messages: Sequence[Mapping[str, str]],
    *,
    max_tokens: int | None = None,
    sample: int = 0,
    schema: Schema | None = None,
) -> dict[str, Any]:
    """The canonical request: everything an answer depends on, and nothing else. `sample` tells wanted repeats apart."""
    request: dict[str, Any] = {
        "endpoint": endpoint,
        "base_url": config.base_url,
        "model": config.model,
        "messages": [dict(message) for message in messages],
        "temperature": role.temperature,
        "top_p": role.top_p,
        "max_tokens": max_tokens or role.max_tokens,
        "sample": sample,
    }
    if extra := config.extra_parameters():
        request["extra"] = extra
    if schema is not None and (response_format := _response_format(config.structured, schema)):
        request["response_format"] = response_format
    return request


def _response_format(structured: str, schema: Schema) -> dict[str, Any] | None:
    if structured == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": dict(schema)}}
    return {"type": "json_object"} if structured == "json_object" else None


def body_of(request: Mapping[str, Any], config: EndpointConfig) -> dict[str, Any]:
    """The JSON body that is sent for a canonical request; an extra parameter of null leaves its parameter out."""
    body = {name: request[name] for name in ("model", "messages", "temperature", "top_p")}
    body[config.length_parameter] = request["max_tokens"]
    if config.send_seed:
        body["seed"] = request["sample"]
    if "response_format" in request:
        body["response_format"] = request["response_format"]
    body |= request.get("extra", {})
    return {name: value for name, value in body.items() if value is not None}


def call_of(key: str, role: str, request: Mapping[str, Any], config: EndpointConfig, *, batch: bool = False) -> Call:
    """What the call may use and cost, before it is made. Tools and schemas may be counted as part of the prompt."""
    texts = [message["content"] for message in request["messages"]]
    beside = [json.dumps(request[name]) for name in ("extra", "response_format") if name in request]
    most = cost(config, prompt_tokens=most_tokens(texts + beside), completion_tokens=request["max_tokens"], batch=batch)
    return Call(
        key=key,
        role=role,
        input_tokens=likely_tokens(texts),
        output_tokens=request["max_tokens"],
        most_nanodollars=most,
        batch=batch,
        request=request,
    )


def read_reply(call: Call, reply: Any, config: EndpointConfig, *, latency_s: float) -> Completion:
    """The completion in the JSON of a reply, whichever server wrote it.

    Raises ResponseFormatError where it is no chat completion.
    """
    choice = _choice(reply)
    text = storable(_content(choice["message"]))
    usage = _mapping(reply.get("usage"))
    told = all(_is_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    prompt_tokens: int = usage["prompt_tokens"] if told else call.input_tokens
    completion_tokens: int = usage["completion_tokens"] if told else likely_tokens([text])
    cached = _mapping(usage.get("prompt_tokens_details")).get("cached_tokens")
    cached_tokens: int = min(prompt_tokens, cached) if told and _is_count(cached) else 0
    return Completion(
        key=call.key,
        endpoint=str(call.request["endpoint"]),
        model=config.model,
        role=call.role,
        request=dict(call.request),
        text=text,
        finish_reason=storable(str(choice.get("finish_reason") or NO_REASON)).strip().lower()[:30],
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        nanodollars=cost(
            config, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cached_tokens=cached_tokens, batch=call.batch
        ),
        estimated=not told,
        batch=call.batch,
        latency_s=latency_s,
    )


def _choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    if (
        not isinstance(choices, list)
        or not choices
        or not isinstance(choices[0], Mapping)
        or not isinstance(choices[0].get("message"), Mapping)
    ):
        raise ResponseFormatError("The reply is not a chat completion.")
    return choices[0]


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message: a string, or the text parts of a list, as some servers have it."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _is_count(value: Any) -> TypeGuard[int]:
    """Whether a server's number of tokens can be one; a stray one would break the ledger for every call of its turn."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
