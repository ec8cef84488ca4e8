"""Published benchmarks are read whole or refused by line: on small files of our own, and on the official ones where they are."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shared import DATA, needs_shared
from trainer.benchmarks.sources import AGIEVAL, BBH, SOURCES, VICUNA, DamagedFile, Source, read_benchmark
from trainer.contamination import HeldOut
from trainer.held_out import as_held_out

AGI = {"passage": None, "question": "How many legs has a spider?", "options": ["(A)six", "(B) eight", "C ten"], "label": "B"}


def agieval(folder: Path, *records: object) -> Source:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "aqua-rat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return replace(AGIEVAL, tasks={"aqua-rat": len(records)}, digests={})


def bbh(folder: Path, task: str, *examples: tuple[str, str]) -> Source:
    rows = [{"input": text, "target": target} for text, target in examples]
    (folder / f"{task}.json").write_text(json.dumps({"canary": "none", "examples": rows}))
    return replace(BBH, tasks={task: len(examples)}, digests={})


def vicuna(folder: Path, *records: object) -> Source:
    (folder / "question.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return replace(VICUNA, tasks={"generic": len(records)}, digests={})


def test_a_multiple_choice_item_has_its_passage_question_options_and_cue(tmp_path: Path) -> None:
    [item] = read_benchmark(agieval(tmp_path, {**AGI, "passage": "Spiders are no insects."}), tmp_path).items
    assert item.prompt == (
        "Spiders are no insects.\n\nQuestion: How many legs has a spider?\n\n"
        "Choices:\n(A) six\n(B) eight\n(C) ten\n\nOf A to C, the answer is"
    )
    assert (item.gold, item.question, item.key) == ("B", AGI["question"], "aqua-rat-0000")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{not json", "line 2: "),
        ('["a list"]', "line 2: an object is expected"),
        ({**AGI, "options": None}, "line 2: a question with its options is expected"),
        ({**AGI, "label": "D"}, "line 2: the answer 'D' is none of the options A, B, C"),
        ({**AGI, "options": ["(A) one"], "label": "A"}, "line 2: the answer 'A' is none"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, record: object, said: str) -> None:
    with pytest.raises(DamagedFile, match=f"aqua-rat.jsonl, {said}"):
        read_benchmark(agieval(tmp_path, AGI, record), tmp_path)


def test_a_missing_file_another_number_of_items_and_an_unknown_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match=r"aqua-rat\.jsonl cannot be read: No such file"):
        read_benchmark(AGIEVAL, tmp_path)
    short = replace(agieval(tmp_path, AGI), tasks={"aqua-rat": 254})
    with pytest.raises(DamagedFile, match="does not have the 254 items of aqua-rat that AGIEval has"):
        read_benchmark(short, tmp_path)
    odd = replace(vicuna(tmp_path, {"turns": ["a"], "category": "generic"}, {"turns": ["b"], "category": "odd"}), tasks={"generic": 1})
    with pytest.raises(DamagedFile, match="Vicuna-Instructions has no task 'odd'"):
        read_benchmark(odd, tmp_path)


def test_options_without_letters_are_given_some(tmp_path: Path) -> None:
    source = bbh(tmp_path, "navigate", ("Do you return?\nOptions:\n- Yes\n- No", "No"), ("Do you come back?\nOptions:\n- Yes\n- No", "Yes"))
    first, second = read_benchmark(source, tmp_path).items
    assert "(A) Yes\n(B) No" in first.prompt
    assert (first.gold, second.gold, first.question) == ("B", "A", "Do you return?")


def test_a_target_whose_options_were_cut_at_its_commas_becomes_one_option_again(tmp_path: Path) -> None:
    text = "Find a movie like these:\nOptions:\n(A) Shrek\n(B) Up\n(C) Down\n(D) Out"
    [item] = read_benchmark(bbh(tmp_path, "movie_recommendation", (text, "Up, Down")), tmp_path).items
    assert "(A) Shrek\n(B) Up, Down\n(C) Out" in item.prompt
    assert item.gold == "B"


@pytest.mark.parametrize("target", ["(E)", "Sideways", ""])
def test_a_target_that_is_no_option_is_refused(tmp_path: Path, target: str) -> None:
    source = bbh(tmp_path, "movie_recommendation", ("Find one:\nOptions:\n(A) Up\n(B) Down", target))
    with pytest.raises(DamagedFile, match=r"movie_recommendation\.json, example 1: the target .* is none of its options"):
        read_benchmark(source, tmp_path)


@needs_shared("agieval", "bbh", "vicuna80")
@pytest.mark.parametrize(("name", "items", "tasks"), [("agieval", 2546, 8), ("bbh", 5511, 23), ("vicuna80", 80, 9)])
def test_the_official_files_have_the_published_counts(name: str, items: int, tasks: int) -> None:
    read = read_benchmark(SOURCES[name], DATA / name)
    counts = Counter(item.task for item in read.items)
    assert (len(read.items), len(counts)) == (items, tasks)
    assert len({item.key for item in read.items}) == items
    assert all(len(digest) == 64 for digest in read.digests.values())


@needs_shared("agieval", "bbh", "vicuna80")
def test_an_official_item_is_caught_as_contamination_and_another_task_is_not() -> None:
    items = [(name, item) for name in ("agieval", "bbh", "vicuna80") for item in read_benchmark(SOURCES[name], DATA / name).items]
    held_out = HeldOut(as_held_out(name, item) for name, item in items)
    assert len(held_out) == 8137
    assert held_out.overlap("How can I improve my time management skills?").startswith("vicuna80 question-1: ROUGE-L 1.00")
    assert held_out.overlap(items[1000][1].prompt)
    assert not held_out.overlap("Write a limerick about a fox that learns to bake bread in a small village")


def test_a_file_that_reads_well_but_was_not_published_is_refused(tmp_path: Path) -> None:
    source = replace(agieval(tmp_path, AGI), digests={"aqua-rat.jsonl": "0" * 16})
    with pytest.raises(DamagedFile, match="is not the file that was published"):
        read_benchmark(source, tmp_path)
