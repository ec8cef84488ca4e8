"""The lines of a batch: JSON objects, one a line, of requests on their way in and of answers on their way out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.demo.chat import MODEL
from trainer.demo.http import to_json

ENDPOINT = "/v1/chat/completions"
MOST_LINES = 50_000
MOST_PROBLEMS = 20
"""So many are told of a file, as one fault is often in each line."""

Problem = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One request of a batch; id is the server's, custom_id the sender's."""

    id: str
    custom_id: str
    body: dict[str, Any]

    def result(self, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """The line that says how the request was answered."""
        response = {"status_code": status, "request_id": self.id, "body": body}
        return {"id": self.id, "custom_id": self.custom_id, "response": response, "error": None}

    def expired(self) -> dict[str, Any]:
        """The line that says that it was not come to in time."""
        error = {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."}
        return {"id": self.id, "custom_id": self.custom_id, "response": None, "error": error}


def problem(code: str, message: str, *, line: int | None = None, param: str | None = None) -> Problem:
    """What is wrong with a file, or with a line of it (counted from 1), as `errors.data` of a batch has it."""
    return {"code": code, "message": message, "line": line, "param": param}


def read_lines(content: bytes, batch_id: str) -> tuple[list[Line], list[Problem]]:
    """The requests in a file, and what is wrong with it: a batch with any problem is not begun."""
    numbered = [(number, text) for number, text in enumerate(content.split(b"\n"), start=1) if text.strip()]
    if not numbered:
        return [], [problem("empty_file", "The input file is empty.")]
    if len(numbered) > MOST_LINES:
        return [], [problem("too_many_tasks", f"A batch may have {MOST_LINES:,} lines, and this one has {len(numbered):,}.")]
    lines: dict[str, Line] = {}
    problems: list[Problem] = []
    for number, text in numbered:
        line = _read_line(number, text, f"batch_req_{batch_id.removeprefix('batch_')}_{number}")
        if isinstance(line, Line) and line.custom_id in lines:
            line = problem("duplicate_custom_id", f"The custom_id {line.custom_id!r} is there twice.", line=number, param="custom_id")
        if isinstance(line, Line):
            lines[line.custom_id] = line
        else:
            problems.append(line)
    return list(lines.values()), problems[:MOST_PROBLEMS]


def write_lines(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(to_json(line) + b"\n" for line in lines)


def _read_line(number: int, text: bytes, line_id: str) -> Line | Problem:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return problem("invalid_json_line", "This line is not JSON.", line=number)
    if not isinstance(line, dict) or not isinstance(line.get("body"), dict):
        return problem("invalid_request", "This line is not an object with a 'body'.", line=number, param="body")
    if not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        return problem("missing_required_parameter", "This line has no 'custom_id'.", line=number, param="custom_id")
    if (line.get("method"), line.get("url")) != ("POST", ENDPOINT):
        return problem("mismatched_endpoint", f"Only POST {ENDPOINT} is served here.", line=number, param="url")
    if line["body"].get("model") != MODEL:
        return problem("model_not_found", f"There is no such model here, only {MODEL!r}.", line=number, param="body.model")
    return Line(line_id, line["custom_id"], line["body"])
