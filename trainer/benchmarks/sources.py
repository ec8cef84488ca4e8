"""The published benchmarks as files: what is in each, under which licence, and how its items are read.

AGIEval's eight English multiple-choice tasks, 23 of BIG-Bench Hard's 27 files and Vicuna's 80 questions, as the paper has them, and
MT-bench's 80. A file is read whole or refused with the line. No item may be trained on: BIG-Bench Hard says so with its canary.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.records import BenchmarkItem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class DamagedFile(ConfigError):
    """A benchmark's file that cannot be read; the message names the file, and the line where there is one."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A benchmark that comes from files. tasks: name -> number of items; file: a task's file below the folder."""

    name: str
    title: str
    home: str
    licence: str
    tasks: Mapping[str, int]
    file: Callable[[str], str]
    read: Callable[[str, bytes], list[BenchmarkItem]]
    digests: Mapping[str, str] = field(default_factory=dict)
    """file -> the first 16 digits of the sha256 of the published one; what is not named is taken as it is."""


@dataclass(frozen=True, kw_only=True)
class ReadBenchmark:
    """The items of a benchmark, and the sha256 of the file of each task."""

    items: tuple[BenchmarkItem, ...]
    digests: Mapping[str, str]


def read_benchmark(source: Source, folder: Path) -> ReadBenchmark:
    """Every item of a benchmark, from its official files below a folder.

    Raises DamagedFile for a file that is not there or cannot be read, and where the number of items is not the published one.
    """
    items: list[BenchmarkItem] = []
    digests: dict[str, str] = {}
    for task in source.tasks:
        if digests.get(source.file(task)):
            continue  # several tasks of one file
        path = folder / source.file(task)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read: {error.strerror}. {source.title} needs it; its home is {source.home}.") from None
        items += source.read(task, data)
        digests[source.file(task)] = digest = hashlib.sha256(data).hexdigest()
        if not digest.startswith(source.digests.get(source.file(task), "")):
            text = (
                f"{path} is not the file that was published (its sha256 begins with {digest[:16]}). Take the official one: {source.home}."
            )
            raise DamagedFile(text)
    found = Counter(item.task for item in items)
    for task, expected in source.tasks.items():
        if found.pop(task, 0) != expected:
            raise DamagedFile(
                f"{source.file(task)} does not have the {expected:,} items of {task} that {source.title} has. Take the official file."
            )
    for task in found:
        raise DamagedFile(f"{source.title} has no task {task!r}. Take the official file.")
    return ReadBenchmark(items=tuple(items), digests=digests)


# AGIEval


def _agieval_items(task: str, data: bytes) -> list[BenchmarkItem]:
    return [_agieval_item(task, number, line, record) for number, (line, record) in enumerate(_lines(f"{task}.jsonl", data))]


def _agieval_item(task: str, number: int, line: int, record: Mapping[str, Any]) -> BenchmarkItem:
    question, options, label = record.get("question"), record.get("options"), record.get("label")
    if not isinstance(question, str) or not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DamagedFile(f"{task}.jsonl, line {line}: a question with its options is expected.")
    letters = LETTERS[: len(options)]
    if len(options) < 2 or label not in list(letters):
        raise DamagedFile(f"{task}.jsonl, line {line}: the answer {label!r} is none of the options {', '.join(letters)}.")
    passage = record.get("passage") or ""
    return BenchmarkItem(
        key=f"{task}-{number:04d}",
        task=task,
        prompt=multiple_choice(question, [_without_letter(option) for option in options], passage=str(passage)),
        gold=label,
        question=question,
    )


_LETTERED = re.compile(r"\A\s*\(?[A-Z](?:\)|\s)\s*")


def _without_letter(option: str) -> str:
    """An option without the letter it comes with: `(A)5`, and in nine items `A No`."""
    return _LETTERED.sub("", option, count=1)


def multiple_choice(question: str, options: list[str], *, passage: str = "") -> str:
    """A question with lettered options, without examples or a chain of thought: AGIEval's zero-shot form, in our words."""
    lettered = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    parts = [passage.strip(), f"Question: {question.strip()}", "\n".join(["Choices:", *lettered])]
    return "\n\n".join([*filter(None, parts), f"Of A to {LETTERS[len(options) - 1]}, the answer is"])


AGIEVAL = Source(
    name="agieval",
    title="AGIEval",
    home="https://github.com/ruixiangcui/AGIEval",
    licence="MIT and Apache-2.0; logiqa-en is CC BY-NC-SA 4.0, not for commercial use",
    tasks={
        "aqua-rat": 254, "logiqa-en": 651, "lsat-ar": 230, "lsat-lr": 510, "lsat-rc": 269, "sat-math": 220, "sat-en": 206,
        "sat-en-without-passage": 206,
    },
    file=lambda task: f"{task}.jsonl",
    read=_agieval_items,
    digests={
        "aqua-rat.jsonl": "cff42e946e6082da",
        "logiqa-en.jsonl": "63d0e8efaca1944e",
        "lsat-ar.jsonl": "3b3e3fe09a07c695",
        "lsat-lr.jsonl": "c6acb4d843db7b51",
        "lsat-rc.jsonl": "0eed491b3099d66b",
        "sat-en-without-passage.jsonl": "77eb57bb6f6f3946",
        "sat-en.jsonl": "33fe87b32ff16ae7",
        "sat-math.jsonl": "9cde4c0522b61968",
    },
)  # fmt: skip


# BIG-Bench Hard

_UNLETTERED = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "formal_fallacies": ("valid", "invalid"),
    "navigate": ("Yes", "No"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}
"""Tasks whose options have no letters in the files; they are given some, in this order."""

_OPTIONS = re.compile(r"\n\s*Options:\s*\n")


def _bbh_items(task: str, data: bytes) -> list[BenchmarkItem]:
    name = f"{task}.json"
    try:
        examples = json.loads(data.decode("utf-8"))["examples"]
    except (UnicodeDecodeError, KeyError, TypeError) as error:
        raise DamagedFile(f"{name} holds no examples as UTF-8 JSON ({type(error).__name__}). Take the official file.") from None
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{name}, line {error.lineno}: {error.msg}.") from None
    return [_bbh_item(task, number, example) for number, example in enumerate(examples)]


def _bbh_item(task: str, number: int, example: Any) -> BenchmarkItem:
    where = f"{task}.json, example {number + 1}"
    if not isinstance(example, dict) or not isinstance(example.get("input"), str) or not isinstance(example.get("target"), str):
        raise DamagedFile(f"{where}: an input and a target are expected.")
    question, *listed = _OPTIONS.split(example["input"], maxsplit=1)
    if task in _UNLETTERED:
        options = list(_UNLETTERED[task])
    elif listed:
        options = [_without_letter(line).strip() for line in listed[0].splitlines() if line.strip()]
    else:
        raise DamagedFile(f"{where}: there are no options.")
    options, gold = _bbh_gold(example["target"], options, where)
    question = question.removeprefix("Question: ")
    prompt = multiple_choice(question, options)
    return BenchmarkItem(key=f"{task}-{number:03d}", task=task, prompt=prompt, gold=gold, question=question)


def _bbh_gold(target: str, options: list[str], where: str) -> tuple[list[str], str]:
    """The options, and the letter of the target: it names a letter, `(C)`, or is the text of an option.

    Three items of movie_recommendation and ruin_names have options that were cut at their commas, and a target that was not: its pieces
    become one option again.
    """
    lettered = re.fullmatch(r"\(([A-Z])\)", target.strip())
    if lettered and lettered[1] in LETTERS[: len(options)]:
        return options, lettered[1]
    for start in range(len(options)):
        for end in range(start + 1, len(options) + 1):
            if ", ".join(options[start:end]) == target.strip():
                return [*options[:start], target.strip(), *options[end:]], LETTERS[start]
    raise DamagedFile(f"{where}: the target {target!r} is none of its options.")


_BBH_OF_250 = (
    "boolean_expressions date_understanding disambiguation_qa formal_fallacies geometric_shapes hyperbaton "
    "logical_deduction_five_objects logical_deduction_seven_objects logical_deduction_three_objects movie_recommendation navigate "
    "reasoning_about_colored_objects ruin_names salient_translation_error_detection sports_understanding temporal_sequences "
    "tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies"
)

BBH = Source(
    name="bbh",
    title="BIG-Bench Hard",
    home="https://github.com/suzgunmirac/BIG-Bench-Hard",
    licence="MIT; carries a canary: never to be trained on",
    tasks=dict(
        sorted({"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178, **dict.fromkeys(_BBH_OF_250.split(), 250)}.items())
    ),
    file=lambda task: f"{task}.json",
    read=_bbh_items,
    digests={
        "boolean_expressions.json": "ea6c754ec005e2d3",
        "causal_judgement.json": "6e8bca44dd402008",
        "date_understanding.json": "0148d4ac5fca05b2",
        "disambiguation_qa.json": "cf06df9ebf911b88",
        "formal_fallacies.json": "4c1adb664821157f",
        "geometric_shapes.json": "07be68a124420caa",
        "hyperbaton.json": "b6d7f55c75f5d02f",
        "logical_deduction_five_objects.json": "d2df31394b903b7f",
        "logical_deduction_seven_objects.json": "2896c7e3482eea31",
        "logical_deduction_three_objects.json": "e590fae72e3a6041",
        "movie_recommendation.json": "a8b53a87ee21a865",
        "navigate.json": "b7944dfd3c81da5c",
        "penguins_in_a_table.json": "bb87ee449698eee5",
        "reasoning_about_colored_objects.json": "0a8850cf95166020",
        "ruin_names.json": "b6f723aef2bafdd4",
        "salient_translation_error_detection.json": "becf3eb8dd53c821",
        "snarks.json": "54a0661fe2de0616",
        "sports_understanding.json": "63ca262858f61768",
        "temporal_sequences.json": "92a1189faaa84aac",
        "tracking_shuffled_objects_five_objects.json": "2063a46a4fb48423",
        "tracking_shuffled_objects_seven_objects.json": "b59fd05b850c37cf",
        "tracking_shuffled_objects_three_objects.json": "546cc7bf10c6a01a",
        "web_of_lies.json": "3e60323f8514a107",
    },
)


# Vicuna and MT-bench

_QUESTIONS = "question.jsonl"


def _questions(task: str, data: bytes) -> list[BenchmarkItem]:
    """All questions, whatever the task: they are in one file. They have no gold answer."""
    return [_question(line, record) for line, record in _lines(_QUESTIONS, data)]


def _question(line: int, record: Mapping[str, Any]) -> BenchmarkItem:
    turns, category = record.get("turns") or [record.get("text")], record.get("category")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns) or not isinstance(category, str):
        raise DamagedFile(f"{_QUESTIONS}, line {line}: a question with its category is expected.")
    key = f"question-{record.get('question_id', line)}"
    return BenchmarkItem(key=key, task=category, prompt="\n\n".join(turns), gold="", question=turns[0])


VICUNA = Source(
    name="vicuna80",
    title="Vicuna-Instructions",
    home="https://github.com/lm-sys/FastChat",
    licence="Apache-2.0",
    tasks={
        "generic": 10, "knowledge": 10, "roleplay": 10, "common-sense": 10, "fermi": 10, "counterfactual": 10, "coding": 7, "math": 3,
        "writing": 10,
    },
    file=lambda task: _QUESTIONS,
    read=_questions,
    digests={
        "question.jsonl": "c248c5c98ba45bb0",
    },
)  # fmt: skip

MT_BENCH = Source(
    name="mt-bench",
    title="MT-bench",
    home="https://github.com/lm-sys/FastChat",
    licence="Apache-2.0",
    tasks=dict.fromkeys(["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"], 10),
    file=lambda task: _QUESTIONS,
    read=_questions,
)

SOURCES = {source.name: source for source in (AGIEVAL, BBH, VICUNA, MT_BENCH)}


def _lines(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a JSONL file with their lines."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise DamagedFile(f"{name}, line {number}: not UTF-8.") from None
        except json.JSONDecodeError as error:
            raise DamagedFile(f"{name}, line {number}: {error.msg}.") from None
        if not isinstance(record, dict):
            raise DamagedFile(f"{name}, line {number}: an object is expected.")
        yield number, record
