"""Files of records: a JSON object a line, durable when written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none where there is no file. A last line that is not whole yet is left out; any other is a ConfigError."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}, is not JSON ({error}). Restore the file, or remove that line.") from None
    return records


def drop_unfinished_line(path: Path) -> None:
    """Cut off what a crash left behind the last whole line, so that the next record begins a line of its own."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]], *, append: bool = False) -> None:
    """Write records and wait until the disk has them. A new file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path if append else path.with_name(path.name + ".new")
    with target.open("a" if append else "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    if not append:
        target.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write a small JSON file, whole or not at all."""
    target = path.with_name(path.name + ".new")
    with target.open("w", encoding="utf-8") as file:
        file.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    target.replace(path)
