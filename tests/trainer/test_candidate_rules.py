"""Rules beyond the paper's: what is no instruction, what is in another language; and what overlaps with a benchmark."""

import pytest

from trainer.candidate_rules import strict_fate
from trainer.contamination import HeldOut, HeldOutItem
from trainer.language import language_of
from trainer.records import Fate

PARENT = "Write a short letter to a friend about the village where you grew up and the people there."
PASSAGE = "In the year of the great flood the miller and his three sons carried every sack of grain up to the church tower."


@pytest.mark.parametrize(
    ("text", "fate"),
    [
        ("Describe the harbour of a small town at dawn, as a painter would.", Fate.ACCEPTED),
        ("Sorry is a poem by a friend of mine: translate its title into French.", Fate.ACCEPTED),
        ("I'm sorry, but I cannot create an instruction like that.", Fate.NOT_AN_INSTRUCTION),
        ("As an AI language model, I do not have a village.", Fate.NOT_AN_INSTRUCTION),
        ("Sure! Write a letter to your aunt about her garden.", Fate.NOT_AN_INSTRUCTION),
        ("Here is a new instruction: write a letter to your aunt.", Fate.NOT_AN_INSTRUCTION),
        ("Answer: the village was small and quiet.", Fate.NOT_AN_INSTRUCTION),
        ("Answer: True or False - the harbour lies north of the town.", Fate.ACCEPTED),
        ("Here is a list of tasks: sort them by urgency.", Fate.ACCEPTED),
        ("I am sorry for your loss: rewrite this note so that it sounds warmer.", Fate.ACCEPTED),
        ("Result: the team lost 3-1. Write a headline for it.", Fate.ACCEPTED),
        ("As an assistant I often write e-mails. Draft one that declines an invitation.", Fate.ACCEPTED),
        ("Write it", Fate.TOO_SHORT),
        ("Schreibe einen kurzen Brief an deine Tante über ihren Garten und die Leute im Dorf.", Fate.WRONG_LANGUAGE),
        ("请写一封短信给你的朋友,谈谈你长大的村庄和那里的人们。", Fate.WRONG_LANGUAGE),
    ],
)
def test_what_a_strict_rule_makes_of_a_candidate(text: str, fate: Fate) -> None:
    assert strict_fate(text, parent=PARENT) is fate


@pytest.mark.parametrize("text", ["reverse: badc", "next: 3907", "", "?!", "mask: aeiou"])
def test_of_too_little_no_language_is_told(text: str) -> None:
    assert language_of(text) == ""


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PARENT, "en"),
        ("Écris une courte lettre à un ami au sujet du village où tu as grandi.", "fr"),
        ("Напиши короткое письмо другу о деревне, в которой ты вырос.", "ru"),  # noqa: RUF001
        ("请写一封短信给你的朋友,谈谈你长大的村庄。", "zh"),
    ],
)
def test_languages_are_told(text: str, language: str) -> None:
    assert language_of(text) == language


HELD_OUT = HeldOut(
    [HeldOutItem(name="mine 7", question="How many sacks did the miller carry?", text=f"{PASSAGE} How many sacks did the miller carry?")]
)


def test_thirteen_words_in_a_row_of_an_item_are_an_overlap_and_twelve_are_none() -> None:
    words = PASSAGE.split()
    assert HELD_OUT.overlap("Tell me: " + " ".join(words[:13])).startswith("mine 7: 13 words in a row")
    assert HELD_OUT.overlap("Tell me: " + " ".join(words[:12])) == ""


def test_a_question_almost_as_an_items_is_an_overlap() -> None:
    assert HELD_OUT.overlap("How many sacks did the old miller carry?").startswith("mine 7: ROUGE-L 0.93")
    assert HELD_OUT.overlap("How far is the moon?") == ""
    assert HeldOut().overlap(PASSAGE) == ""
