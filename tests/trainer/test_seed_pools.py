"""A seed pool is imported whole, or not at all with every problem named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.seed_pools import SeedPoolError, parse_seed_pool, read_seed_pool

SEED_TASKS = Path(__file__).parents[3] / "shared/data/self_instruct/seed_tasks.jsonl"


def alpaca(instruction: Any = "Say hello.", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": "", "output": "Hello.", **more}


def lines(*records: Any) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


def problems_of(text: str) -> list[tuple[int, str]]:
    with pytest.raises(SeedPoolError) as refused:
        parse_seed_pool(text, name="seeds.jsonl")
    return refused.value.problems


@pytest.mark.parametrize("form", [lines, lambda *records: json.dumps(records), lambda *records: json.dumps(records, indent=2)])
def test_alpaca_records_are_read_from_lines_and_from_an_array(form: Any) -> None:
    pool = parse_seed_pool(form(alpaca("Say hello."), alpaca("Add up.", input="1, 2")), name="seeds")
    assert [(item.key, item.text, item.input) for item in pool.instructions] == [
        ("seed-000000", "Say hello.", ""),
        ("seed-000001", "Add up.", "1, 2"),
    ]
    assert (pool.format, pool.duplicates) == ("alpaca", 0)


def test_self_instruct_records_take_the_input_of_their_first_instance() -> None:
    record = {
        "id": "seed_task_0", "name": "sum", "instruction": "Add up.", "is_classification": False,
        "instances": [{"input": "1, 2", "output": "3"}, {"input": "4", "output": "4"}],
    }  # fmt: skip
    pool = parse_seed_pool(lines(record, {**record, "instances": []}), name="seeds")
    assert [item.input for item in pool.instructions] == ["1, 2", ""]
    assert pool.format == "self-instruct"


def test_a_file_may_mix_both_formats() -> None:
    pool = parse_seed_pool(lines(alpaca(), {"instruction": "Add up.", "instances": [{"input": "1"}]}), name="seeds")
    assert (len(pool.instructions), pool.format) == (2, "mixed")


def test_exact_duplicates_are_dropped_and_counted_and_the_keys_stay_dense() -> None:
    pool = parse_seed_pool(lines(alpaca("a"), alpaca("a"), alpaca("a", input="x"), alpaca("b")), name="seeds")
    assert [(item.key, item.text, item.input) for item in pool.instructions] == [
        ("seed-000000", "a", ""),
        ("seed-000001", "a", "x"),
        ("seed-000002", "b", ""),
    ]
    assert pool.duplicates == 1


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"input": "x"}, 'no "instruction"'),
        (alpaca("  \n"), "blank"),
        (alpaca(None), "not null"),
        (alpaca(7), "not a number"),
        (alpaca(input=["x"]), "not a list"),
        (alpaca(output={}), "not an object"),
        (alpaca("a\x00b"), "NUL"),
        (alpaca("a\ud800b"), "surrogate"),
        (alpaca("a" * 100_001), "100,001 characters"),
        (alpaca("a" * 60_000, input="b" * 60_000), "120,000 characters"),
        ({"instruction": "a", "instances": "x"}, '"instances" must be a list'),
        ({"instruction": "a", "instances": [{"input": 3}]}, "input of the first instance"),
        ("just a text", "must be a JSON object, not a text"),
        (True, "not true or false"),
    ],
)
def test_a_bad_record_is_named_by_its_line_with_what_to_do(record: Any, complaint: str) -> None:
    [(line, text)] = problems_of(lines(alpaca(), record, alpaca("other")))
    assert line == 2
    assert complaint in text


def test_every_problem_is_listed_and_the_message_shows_the_first_twenty_and_the_count() -> None:
    text = lines(*[alpaca("") for _ in range(25)])
    with pytest.raises(SeedPoolError, match=r"seeds\.jsonl was not imported: 25 problems") as refused:
        parse_seed_pool(text, name="seeds.jsonl")
    assert [line for line, _ in refused.value.problems] == list(range(1, 26))
    message = str(refused.value)
    assert "line 20:" in message
    assert "line 21:" not in message
    assert message.endswith("and 5 more.")
    assert isinstance(refused.value, ConfigError)
    assert "line 1:" in refused.value.fields["seed_pool"]


def test_a_line_that_is_not_json_does_not_hide_the_next_problem() -> None:
    found = problems_of('{"instruction": "a"}\n{"instruction": \n\n{"instruction": ""}\n')
    assert [line for line, _ in found] == [2, 4]
    assert "Not JSON" in found[0][1]


def test_an_element_of_an_array_is_named_by_the_line_it_starts_on() -> None:
    text = '[\n  {"instruction": "a"},\n  {\n    "instruction": ""\n  },\n  {"instruction": 3}\n]'
    assert [line for line, _ in problems_of(text)] == [3, 6]


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ('[{"instruction": "a"},\n {"instruction": }]', 2, "Not JSON"),
        ('[{"instruction": "a"}\n {"instruction": "b"}]', 2, "comma"),
        ('[{"instruction": "a"}\n', 2, "closing ]"),
        ('[{"instruction": "a"}]\n[1]', 1, "after the closing ]"),
        ("[" * 100_000, 1, "Not JSON"),
        ('{"instruction": "a"}\n{"id": ' + "1" * 5000 + "}", 2, "a number is too long"),
        ("[" + "1" * 5000 + "]", 1, "a number is too long"),
        ("[]", 1, "no instruction"),
        ("", 1, "no instruction"),
        (" \n\n", 1, "no instruction"),
    ],
)
def test_a_broken_or_empty_file_is_refused_where_it_breaks(text: str, line: int, complaint: str) -> None:
    found = problems_of(text)
    assert found[-1][0] == line
    assert complaint in found[-1][1]


def test_a_comma_after_the_last_element_does_no_harm() -> None:
    assert len(parse_seed_pool('[{"instruction": "a"},\n]', name="seeds").instructions) == 1


def test_a_file_that_is_not_utf8_is_refused_by_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(b'{"instruction": "caf\xe9"}\n{"instruction": "b"}\n{"instruction": "\xff"}\n')
    with pytest.raises(SeedPoolError) as refused:
        read_seed_pool(path)
    assert [line for line, _ in refused.value.problems] == [1, 3]
    assert "UTF-8" in str(refused.value)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"instruction": "a"}\r\n\r\n{"instruction": "b"}\r\n')
    assert [item.text for item in read_seed_pool(path).instructions] == ["a", "b"]


def test_a_line_separator_inside_a_text_does_not_end_the_line() -> None:
    pool = parse_seed_pool('{"instruction": "a\u2028b"}\n', name="seeds")
    assert pool.instructions[0].text == "a\u2028b"


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_seed_pool(tmp_path / "none.jsonl")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip), min_size=1, max_size=8
    )
)
def test_what_is_written_as_lines_or_as_an_array_is_read_alike(texts: list[str]) -> None:
    records = [alpaca(text) for text in texts]
    pool = parse_seed_pool(lines(*records), name="seeds")
    assert pool == parse_seed_pool(json.dumps(records, ensure_ascii=False, indent=1), name="seeds")
    assert [item.text for item in pool.instructions] == list(dict.fromkeys(text.strip() for text in texts))


@pytest.mark.skipif(not SEED_TASKS.exists(), reason="the Self-Instruct seed tasks are not on this machine")
def test_the_175_self_instruct_seed_tasks_are_read() -> None:
    pool = read_seed_pool(SEED_TASKS)
    assert len(pool.instructions) + pool.duplicates == 175
    assert pool.format == "self-instruct"
    assert pool.instructions[0].text.startswith("Is there anything I can eat for a breakfast")
