"""Scores are read however they are dressed, and never made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ResponseFormatError
from trainer.parsing import Scores, parse_scores

EVIDENCE = "Evidence: the first is exact.\nThe second rambles.\n"


@pytest.mark.parametrize(
    ("lines", "first", "second"),
    [
        ("Score of assistant 1: 8\nScore of assistant 2: 7", 8, 7),
        ("Score of assistant 1: 8/10\nScore of assistant 2: 7 / 10", 8, 7),
        ("Score of the Assistant 1: 8.5\nScore of the Assistant 2: 7,5", 8.5, 7.5),
        ("**Score of the Assistant 1:** 8 out of 10\n\n**Score of the Assistant 2: 7**", 8, 7),
        ("- Score of Assistant 1: **9**\n- Score of Assistant 2: _3_", 9, 3),
        ("### Score for Assistant 1: 8 points\n---\n```\nScore for Assistant 2: `10`\n```", 8, 10),
        ("Score of assistant 1: <8>\nScore of assistant 2: [7]/10", 8, 7),
        ("Score of Assistant 1: 8 (good)\nScore of Assistant 2: 7 (3 slips)", 8, 7),
        ("Score of Assistant 1: 8 - clear\nScore of Assistant 2: 7, as it rambles", 8, 7),
        ("Score of Assistant 2: 7\nScore of Assistant 1: 8", 8, 7),
        ("Score of assistant 1\uff1a\uff18\nScore of assistant 2\uff1a\u0667\u066b\u0665", 8, 7.5),
        ("Score of assistant \u0967: \u096e\nScore of assistant \u0968: \u096d", 8, 7),
        ("Assistant 1: 8\nAssistant 2: 7", 8, 7),
        ("Assistant 1\u2019s score: 8, Assistant 2\u2019s score: 7", 8, 7),
        ("Final score of Assistant 1 (the shorter): 8\nFinal score of Assistant 2 (the longer): 7", 8, 7),
        ("Score of assistant 1: 8\nScore of assistant 2: 7\n\n\n", 8, 7),
        ("Score of assistant 1: 8\r\nScore of assistant 2: 7\r\nI hope that this helps.", 8, 7),
        ("Score of assistant 1: 8\nScore of assistant 2: 7\nScore of assistant 1: 8.0", 8, 7),
        ("Score of assistant 1: 8\nIt is exact.\nScore of assistant 2: 7\nIt rambles.", 8, 7),
    ],
)
def test_scores_are_read_in_any_dress(lines: str, first: float, second: float) -> None:
    assert parse_scores(EVIDENCE + lines) == Scores(first, second, "the first is exact.\nThe second rambles.")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("", "no score for assistant 1 and 2"),
        ("Score of assistant 1: 8", "no score for assistant 2"),
        ("Score of assistant 1: 8\nScore of assistant 2:", "missing"),
        ("Score of assistant 1: 8\nScore of assistant 2", "ends inside a score line"),
        ("Score of assistant 1: 8\nScore of ass", "ends inside a score line"),
        ("Score of assistant 1: 8/\nScore of assistant 2: 7", "not out of ten"),
        ("Score of assistant 1: 4/5\nScore of assistant 2: 7", "not out of ten"),
        ("Score of assistant 1: 8\nScore of assistant 2: 7 out of", "not out of ten"),
        ("Score of assistant 1: 8\nScore of assistant 2: 11", "outside 1 to 10"),
        ("Score of assistant 1: 0\nScore of assistant 2: 7", "outside 1 to 10"),
        ("Score of assistant 1: -8\nScore of assistant 2: 7", "outside 1 to 10"),
        ("Score of assistant 1: 8\u00b2\nScore of assistant 2: 7", "outside 1 to 10"),
        ("Score of assistant 1: 8 - 9\nScore of assistant 2: 7", "not one number"),
        ("Score of assistant 1: 8 or 9\nScore of assistant 2: 7", "not one number"),
        ("Score of assistant 1: 8%\nScore of assistant 2: 7", "not one number"),
        ("Score of assistant 1: good\nScore of assistant 2: 7", "not a number"),
        ("Score of assistant 1: 8\nScore of assistant 2: 7\nScore of assistant 1: 3", "different scores: 8, 3"),
        ("Score of assistant 1: 8\nScore of assistant 2: 7\nThough on reflection\nScore of assistant 1: 3", "different scores: 8, 3"),
        ("Score of assistant 12: 8\nScore of assistant 2: 7", "no score for assistant 1"),
    ],
)
def test_scores_that_cannot_be_trusted_are_refused_with_a_sentence(lines: str, complaint: str) -> None:
    with pytest.raises(ResponseFormatError, match=complaint):
        parse_scores(EVIDENCE + lines)


@pytest.mark.parametrize("reply", ["", "  \n\t\n", "<think>\nScore of assistant 1: 8\nScore of assistant 2: 7\n"])
def test_an_empty_reply_or_unfinished_thoughts_are_refused(reply: str) -> None:
    with pytest.raises(ResponseFormatError, match=r"empty|cut off"):
        parse_scores(reply)


def test_the_last_pair_counts_where_the_evidence_quotes_scores() -> None:
    reply = (
        "The student wrote:\nScore of assistant 1: 10\nScore of assistant 2: 1\nwhich is no answer.\n"
        "Score of assistant 1: 2\nScore of assistant 2: 9"
    )
    scores = parse_scores(reply)
    assert (scores.first, scores.second) == (2, 9)


def test_prose_that_counts_something_is_not_a_score() -> None:
    reply = "Assistant 1: 3 steps are missing.\nAssistant 2: 2 examples help.\nScore of assistant 1: 5\nScore of assistant 2: 6"
    scores = parse_scores(reply)
    assert (scores.first, scores.second) == (5, 6)


@pytest.mark.parametrize("filler", [" ", "*", "# ", "(", "8 ", "\ufdfa"])
@pytest.mark.parametrize("head", ["", "assistant", "Score of assistant 1", "Score of assistant 1: 8", "Assistant 1: 8"])
def test_a_line_without_end_is_refused_and_not_pondered(head: str, filler: str) -> None:
    with pytest.raises(ResponseFormatError):
        parse_scores(head + filler * 200_000 + "x")


def test_evidence_written_after_the_scores_is_kept() -> None:
    assert parse_scores("Score of assistant 1: 5\nScore of assistant 2: 6\nThe second is kinder.").evidence == "The second is kinder."


TENTHS = st.integers(10, 100).map(lambda tenths: tenths / 10)
PROSE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60).filter(lambda text: "score" not in text.casefold())


@given(
    first=TENTHS,
    second=TENTHS,
    evidence=PROSE,
    swapped=st.booleans(),
    dress=st.sampled_from(["{}", "**{}**", "{}/10", "{} out of 10", " {} "]),
)
def test_what_is_written_is_what_is_read(first: float, second: float, evidence: str, swapped: bool, dress: str) -> None:
    lines = [f"Score of assistant 1: {dress.format(first)}", f"Score of assistant 2: {dress.format(second)}"]
    scores = parse_scores("\n".join([f"Evidence: {evidence}", *(lines[::-1] if swapped else lines)]))
    assert (scores.first, scores.second) == (first, second)


def assert_in_range_or_refused(reply: str) -> None:
    try:
        scores = parse_scores(reply)
    except ResponseFormatError:
        return
    assert 1 <= scores.first <= 10
    assert 1 <= scores.second <= 10


@given(st.text(max_size=200))
def test_any_text_gives_scores_in_range_or_a_refusal(reply: str) -> None:
    assert_in_range_or_refused(reply)


@given(
    st.lists(
        st.sampled_from(
            ["Score of", " assistant 1", " assistant 2", ":", " 8", " 11", "/10", " out of 10", "\n", "**", " -", "6.5", " or", "(", ")"]
        ),
        max_size=16,
    ).map("".join)
)
def test_shuffled_pieces_of_score_lines_give_scores_in_range_or_a_refusal(reply: str) -> None:
    assert_in_range_or_refused(reply)


@given(cut=st.integers(0, 200))
def test_a_reply_cut_off_before_its_last_score_is_refused(cut: int) -> None:
    whole = "Evidence: the first is better.\nScore of assistant 1: 8\nScore of assistant 2: 7"
    with pytest.raises(ResponseFormatError):
        parse_scores(whole[: min(cut, len(whole) - 1)])
