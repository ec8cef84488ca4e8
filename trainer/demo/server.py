"""The offline teacher: a small OpenAI-compatible server that computes exact answers and plays teacher, referee and generator.

What it says is in `trainer.demo.play`; it keeps no state that an answer depends on. Faults and limits to practise with are `Knobs`.
Written as bare ASGI: it shares the processors with all that it is there to try out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from trainer.demo.batches import Batches
from trainer.demo.chat import MODEL, Answer, answer, check_request
from trainer.demo.faults import Fault, Faults
from trainer.demo.http import (
    Receive,
    Refused,
    Reply,
    Scope,
    Send,
    client_left,
    error_reply,
    header,
    json_reply,
    parse_json,
    query,
    read_body,
    read_form,
    require,
    to_json,
    whole_number,
)
from trainer.demo.knobs import Knobs
from trainer.demo.ledger import Ledger
from trainer.demo.limits import LIMITED_RETRY_S, Limits
from trainer.errors import ConfigError

LONGEST_OUTAGE_S = 3600


class OfflineTeacherApp:
    """The ASGI application: the chat completions, files and batches of OpenAI's API, and /v1/models, /health, /stats and /outage."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self._ledger = Ledger()
        self._limits = Limits(knobs)
        self._faults = Faults(knobs)
        self._batches = Batches(knobs, self._ledger)
        self._out_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            reply = await self._reply(scope, receive)
        except Refused as refused:
            self._ledger.count("limited" if refused.status == 429 else "refused")
            reply = json_reply(refused.body, status=refused.status, headers=refused.headers)
        if reply is not None:
            await reply.send(send)

    async def _reply(self, scope: Scope, receive: Receive) -> Reply | None:
        """The answer to a request; None for a client that left while it had none."""
        method, path = scope["method"], scope["path"]
        if path.startswith("/v1/") and time.monotonic() < self._out_until:
            self._ledger.count("unavailable")
            return error_reply(503, "unavailable", "The offline teacher is out of order on purpose (POST /outage).")
        if path == "/v1/chat/completions":
            require(method, "POST")
            with self._limits.place():
                return await self._chat(await read_body(receive), header(scope, b"idempotency-key"), receive)
        if path.startswith(("/v1/files", "/v1/batches")):
            return self._batch_api(scope, await read_body(receive))
        if path == "/outage":
            require(method, "POST")
            return self._begin_outage(query(scope))
        answers: dict[str, Callable[[], Any]] = {"/v1/models": _models, "/health": lambda: {"status": "ok"}, "/stats": self.stats}
        if path not in answers:
            raise _nothing_at(path)
        require(method, "GET")
        return json_reply(answers[path]())

    async def _chat(self, body: bytes, idempotency_key: bytes, receive: Receive) -> Reply | None:
        found, fault = self._admit(body, idempotency_key)
        headers = self._limits.headers()
        if self.knobs.latency_ms:
            await asyncio.sleep(self.knobs.latency_ms / 1000)
        if fault is Fault.ERROR:
            self._ledger.count("errors")
            return error_reply(500, "server_error", "The offline teacher failed on purpose (error_rate).")
        content, replayed = self._make(found, idempotency_key)
        if fault is Fault.HANG:
            self._ledger.count("hung")
            await client_left(receive)
            return None
        if fault is Fault.RESET:
            self._ledger.count("reset")
            return Reply(200, content, headers, broken=True)
        if fault is Fault.MANGLE:
            self._ledger.count("mangled")
            return Reply(200, content[: len(content) // 2], headers)
        self._ledger.answer(found.role, idempotency_key or body, replayed=replayed)
        return Reply(200, content, headers)

    def _admit(self, body: bytes, idempotency_key: bytes) -> tuple[Answer, Fault | None]:
        """The answer that a request will have, and what befalls this attempt; nothing befalls one that is only answered again.

        Raises Refused where it may not come in, or cannot be answered.
        """
        self._limits.take_request(time.monotonic())
        found = answer(check_request(parse_json(body), self.knobs), self.knobs)
        self._limits.take_tokens(time.monotonic(), found.tokens)
        fault = self._faults.draw(found.digest) if self._ledger.find(idempotency_key) is None else None
        if fault is Fault.LIMITED:
            raise self._limits.refusal(LIMITED_RETRY_S, "requests")
        return found, fault

    def _make(self, found: Answer, idempotency_key: bytes) -> tuple[bytes, bool]:
        """The reply to send, charged unless it was made before under this key; and whether it was."""
        kept = self._ledger.find(idempotency_key)
        if kept is not None:
            return kept, True
        content = to_json(found.completion(self.knobs))
        self._ledger.charge(found, idempotency_key=idempotency_key, reply=content)
        return content, False

    def _batch_api(self, scope: Scope, body: bytes) -> Reply:
        """Files and batches, by method and path."""
        now = time.time()
        match scope["method"], scope["path"].split("/")[2:]:
            case "POST", ["files"]:
                return json_reply(self._batches.add_file(read_form(header(scope, b"content-type"), body), now))
            case "GET", ["files", file_id]:
                return json_reply(self._batches.file(file_id).shown())
            case "GET", ["files", file_id, "content"]:
                return Reply(200, self._batches.file(file_id).content, content_type=b"application/octet-stream")
            case "POST", ["batches"]:
                return json_reply(self._batches.add(body, now))
            case "GET", ["batches"]:
                options = query(scope)
                limit = whole_number(options.get("limit", "20"), name="limit", low=1, high=100)
                return json_reply(self._batches.listed(limit=limit, after=options.get("after", ""), now=now))
            case "GET", ["batches", batch_id]:
                return json_reply(self._batches.shown(batch_id, now))
            case "POST", ["batches", batch_id, "cancel"]:
                return json_reply(self._batches.cancel(batch_id, now))
        raise _nothing_at(f"{scope['method']} {scope['path']}")

    def _begin_outage(self, options: dict[str, str]) -> Reply:
        seconds = whole_number(options.get("seconds", ""), name="seconds", low=0, high=LONGEST_OUTAGE_S)
        self._out_until = time.monotonic() + seconds
        return json_reply({"seconds": seconds})

    def stats(self) -> dict[str, Any]:
        """See `Ledger.stats`; and the most requests that were under way at one time."""
        self._batches.bring_all_up_to(time.time())
        return {**self._ledger.stats(), "most_at_once": self._limits.most_at_once}


def serve(host: str, port: int, knobs: Knobs) -> None:
    """Serve until SIGTERM or SIGINT; prints {"port": n} on stdout once it listens (port 0 takes a free one).

    Raises ConfigError where it cannot listen there.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        OfflineTeacherApp(knobs),
        access_log=False,
        lifespan="off",
        log_level="warning",
        server_header=False,
        date_header=False,
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        backlog=4096,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_no_fault_on_purpose)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=4096)
    except OSError as error:
        raise ConfigError(f"The offline teacher cannot listen on {host} port {port}: {error.strerror}. Give it another --port.") from None
    for number in (signal.SIGTERM, signal.SIGINT):  # The server raises the signal again once it has stopped.
        signal.signal(number, lambda *_: sys.exit(0))
    _Announced(config).run(sockets=[listener])


class _Announced(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            print(json.dumps({"port": sockets[0].getsockname()[1]}), flush=True)


def _is_no_fault_on_purpose(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log says something: replies that break off or never come are meant to."""
    return not record.getMessage().startswith(("ASGI callable returned without", "Cancel "))


def _models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "lionweb"}]}


def _nothing_at(path: str) -> Refused:
    return Refused(404, "not_found", f"There is nothing at {path}.")
