"""What the offline teacher needs of HTTP: a request's body, form and query, and replies in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.message
import email.policy
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. broken: the connection ends after the headers, before the content they announce."""

    status: int
    content: bytes
    headers: Headers = ()
    content_type: bytes = b"application/json"
    broken: bool = False

    async def send(self, send: Send) -> None:
        headers = [(b"content-type", self.content_type), (b"content-length", b"%d" % len(self.content)), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if not self.broken:
            await send({"type": "http.response.body", "body": self.content})


class Refused(Exception):
    """A request that is answered with a 4xx and OpenAI's error shape."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.code, str(self))


def to_json(data: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    return _encode(data).encode("utf-8", "replace")


def json_reply(data: Any, *, status: int = 200, headers: Headers = ()) -> Reply:
    return Reply(status, to_json(data), headers)


def error_body(status: int, code: str, message: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_reply(status: int, code: str, message: str) -> Reply:
    return json_reply(error_body(status, code, message), status=status)


def require(method: str, wanted: str) -> None:
    """Raises Refused where the request has another method."""
    if method != wanted:
        raise Refused(405, "method_not_allowed", f"Use {wanted} here, not {method}.")


def header(scope: Scope, wanted: bytes) -> bytes:
    """A header of the request, by its name in lower case; empty where it is not there."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")


def query(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode("ascii", "replace")))


def whole_number(text: str, *, name: str, low: int, high: int) -> int:
    """A number of the query. Raises Refused where it is none, or out of its range."""
    if not (text.isascii() and text.isdigit() and low <= int(text[:12]) <= high):
        raise Refused(400, "invalid_value", f"{name!r} must be a whole number from {low:,} to {high:,}.")
    return int(text)


async def read_body(receive: Receive) -> bytes:
    message = await receive()
    if not message.get("more_body"):
        return bytes(message.get("body", b""))
    parts = [message["body"]]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)


def parse_json(body: bytes) -> Any:
    """Raises Refused where the body is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "invalid_json", "The body is not JSON.") from None


async def client_left(receive: Receive) -> None:
    """Returns when the client has closed its connection, or the server ends."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True)
class FormField:
    """One field of a form: its content, and the name of the file where it is one."""

    content: bytes
    filename: str = ""


def read_form(content_type: bytes, body: bytes) -> dict[str, FormField]:
    """The fields of a multipart/form-data body, their contents byte for byte. Raises Refused where it is none."""
    message = email.message_from_bytes(b"Content-Type: " + content_type + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    if message.get_content_type() != "multipart/form-data" or not message.is_multipart():
        raise Refused(400, "invalid_form", "Send the file as multipart/form-data.")
    return {str(part.get_param("name", "", header="content-disposition")): _field(part) for part in message.iter_parts()}


def _field(part: email.message.Message) -> FormField:
    content = part.get_payload(decode=True)
    return FormField(content if isinstance(content, bytes) else b"", part.get_filename() or "")
