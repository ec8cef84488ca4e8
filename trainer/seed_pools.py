"""Read a seed pool from a JSON or JSONL file in the Alpaca or the Self-Instruct format, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.records import Instruction

LONGEST = 100_000
"""Characters that an instruction and its input may have together."""

SHOWN = 20
"""Problems listed in the message; the rest are counted."""

ALPACA, SELF_INSTRUCT, MIXED = "alpaca", "self-instruct", "mixed"

_BLANK = re.compile(r"[ \t\r\n]*")
_SEPARATOR = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")


class SeedPoolError(ConfigError):
    """A seed pool that cannot be imported; `problems` has (line number, what is wrong and what to do) for each place."""

    def __init__(self, name: str, problems: list[tuple[int, str]]) -> None:
        listed = [f"line {line}: {text}" for line, text in problems[:SHOWN]]
        more = len(problems) - len(listed)
        if more:
            listed.append(f"and {more} more.")
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{name} was not imported: {counted}.", *listed]), fields={"seed_pool": "\n".join(listed)})
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class SeedPool:
    """What a file held: its instructions in file order, how many exact duplicates were dropped, and its format."""

    instructions: tuple[Instruction, ...]
    duplicates: int
    format: str


def read_seed_pool(path: Path) -> SeedPool:
    """Read and check a seed pool.

    Raises SeedPoolError with every problem found, and ConfigError where the file cannot be read at all.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The seed pool {path} cannot be read: {error.strerror}. Check the path.") from None
    return parse_seed_pool(decode_seed_pool(data, name=path.name), name=path.name)


def decode_seed_pool(data: bytes, *, name: str) -> str:
    """The text of a seed pool's file. Raises SeedPoolError naming every line that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SeedPoolError(name, _undecodable(data) or [(1, f"Not UTF-8: {error.reason}.")]) from None


def parse_seed_pool(text: str, *, name: str) -> SeedPool:
    """The seed pool in a text; `name` is what messages call it. Raises SeedPoolError with every problem found."""
    problems: list[tuple[int, str]] = []
    found: dict[tuple[str, str], None] = {}
    formats: set[str] = set()
    records = 0
    for line, record in _records(text, problems):
        records += 1
        try:
            task, record_format = _read_record(record)
        except ValueError as problem:
            problems.append((line, str(problem)))
            continue
        formats.add(record_format)
        found.setdefault(task)
    if not records and not problems:
        problems.append((1, "The file holds no instruction. Give it a JSON array, or one JSON object a line."))
    if problems:
        raise SeedPoolError(name, sorted(problems))
    instructions = tuple(
        Instruction(key=f"seed-{position:06d}", text=task, input=task_input) for position, (task, task_input) in enumerate(found)
    )
    return SeedPool(instructions=instructions, duplicates=records - len(found), format=formats.pop() if len(formats) == 1 else MIXED)


def _records(text: str, problems: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """Each record with the line it starts on; what is no JSON goes to `problems`."""
    body = text.removeprefix("\ufeff")
    return _array_elements(body, problems) if body.lstrip().startswith("[") else _line_records(body, problems)


def _line_records(text: str, problems: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # str.splitlines would also cut at U+2028 inside a string.
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append((number, f"Not JSON ({_reason(error)}). Write one whole JSON object on this line."))
        else:
            yield number, record


def _array_elements(text: str, problems: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array. Where one is broken the rest cannot be told apart, so that is the last problem."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    at = _skip(_BLANK, text, text.index("[") + 1)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            broken = error.lineno if isinstance(error, json.JSONDecodeError) else line
            problems.append((broken, f"Not JSON ({_reason(error)}). Mend it; what follows could not be read."))
            return
        yield line, record
        separator = _SEPARATOR.match(text, end)
        at = separator.end() if separator else _skip(_BLANK, text, end)
        if not separator and not text.startswith("]", at):
            problems.append((text.count("\n", 0, at) + 1, "A comma or the closing ] is missing here; what follows could not be read."))
            return
    if text[at + 1 :].strip():
        problems.append((text.count("\n", 0, at) + 1, "There is more text after the closing ]. Remove it."))


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _read_record(record: Any) -> tuple[tuple[str, str], str]:
    """(instruction, input) and the format of one record. Raises ValueError with what is wrong and what to do."""
    if not isinstance(record, dict):
        raise ValueError(f"A record must be a JSON object, not {_kind(record)}.")
    if "instruction" not in record:
        raise ValueError('There is no "instruction". Add the text of the task under that name.')
    text = _text(record["instruction"], "instruction")
    if not text.strip():
        raise ValueError('The "instruction" is blank. Write the task, or remove the record.')
    if "instances" in record:
        task_input, record_format = _first_input(record["instances"]), SELF_INSTRUCT
    else:
        task_input, record_format = _text(record.get("input"), "input"), ALPACA
        _text(record.get("output"), "output")
    if len(text) + len(task_input) > LONGEST:
        raise ValueError(f"The task has {len(text) + len(task_input):,} characters with its input; the most is {LONGEST:,}. Shorten it.")
    return (text.strip(), task_input.strip()), record_format


def _first_input(instances: Any) -> str:
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise ValueError('"instances" must be a list of objects with "input" and "output".')
    return _text(instances[0].get("input"), "input of the first instance") if instances else ""


def _text(value: Any, name: str) -> str:
    """The value as text that a database can keep; a missing one is empty."""
    if value is None and name != "instruction":
        return ""
    if not isinstance(value, str):
        raise ValueError(f'The "{name}" must be a text, not {_kind(value)}.')
    if "\x00" in value:
        raise ValueError(f'The "{name}" holds a NUL character, which a database cannot keep. Remove it.')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f'The "{name}" holds half of a surrogate pair (\\ud800 to \\udfff). Remove it or write the whole character.')
    return value


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names[type(value)]


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def _undecodable(data: bytes) -> list[tuple[int, str]]:
    """Every line that is not UTF-8."""
    problems = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append((number, f"Not UTF-8 at byte {error.start + 1} of the line. Save the file as UTF-8."))
    return problems
