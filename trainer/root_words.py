"""The root verb of an instruction and its direct object: what is asked for, in two words, as in the paper's Figure 3.

The paper's figure, like Self-Instruct's, is drawn from a parser. Here rules find the first request of a text and a lexicon (lemminflect)
says which words can be verbs and nouns, so that an iteration of 6,000 takes a second and no model is fetched. Held against spaCy 3.8's
`en_core_web_sm` on Self-Instruct's 175 seed tasks and Vicuna's 80 questions (1 December 2026): 213 of the 255 have a verb here and 227
there, the same in 183; of 146 with an object on both sides 134 have the same. Most that differ are questions, and requests that follow
a statement ("We have some data. Write a text"), where the parser takes the statement's verb. English only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

LOOKED_AT = 600
"""Characters from the beginning; the request is rarely later."""
SENTENCES = 3
LONGEST_WORD = 40
"""Characters; what is longer is a sequence, a hash or a scream and no word."""

_TOKEN = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*|\d+|[.!?:;]+|[^\sA-Za-z\d]")
_POSSESSIVE = re.compile(r"['\u2019]s\b")
_QUOTED = re.compile(r"[\"\u201c\u201d`*_#]+")
_END = re.compile(r"[.!?:;]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POLITE = _words("please kindly now then also first next finally just simply briefly and so ok okay try")
_SUBJECTS = _words("i you we one they he she it someone people")
_AUXILIARIES = _words("can could would will should must may might do does did shall")
_ASKS_TO = _words("want need like ask have try going supposed required asked help is task job goal aim")
"""After one of these, `to` comes before the verb of a request."""
_FRAMES = _words("""
    given using to in for if when with based as from considering assuming after before by without on at while because since below
    here imagine suppose consider following according
""")
"""A text that begins with one of these has its request behind a comma."""
_NO_VERBS = (
    _POLITE
    | _SUBJECTS
    | _AUXILIARIES
    | _FRAMES
    | _words("""
    a an the this that these those my your his her its our their no not all any some what which who whom whose why how where am are
    was were be been being has had there well like let even each every more most me us or but of yes hello hi dear nothing
""")
)
_JOINS = _words("and or , /")
_PARTICLES = _words("down out up off")
_RECIPIENTS = _words("me us him her them you yourself")
_BEFORE_NOUN = _words("""
    a an the this that these those my your his her its our their all any some each every both no another several many few one two
    three four five six seven eight nine ten other following given very different such own more least most
""")
_BEHIND_NOUN = _FRAMES - _words("given following below") | _words("""
    of about into onto than that which who whose whom where why how what whether so is are was were can could would should will has
    have had do does over under between through during against until up out down like via per not it then please you i we they he
    she
""")


@dataclass(frozen=True)
class RootWords:
    """Lemmas in lower case; "" where there is none. `Write two short poems about rain.` has write and poem."""

    verb: str = ""
    noun: str = ""


def root_words(text: str) -> RootWords:
    """The verb of the first request in an English text, with the head of its direct object."""
    tokens = _TOKEN.findall(_POSSESSIVE.sub("", _QUOTED.sub(" ", text[:LOOKED_AT])))
    for sentence in _sentences([token.lower() for token in tokens])[:SENTENCES]:
        if (place := _verb_place(sentence)) is not None:
            return RootWords(sentence[place], _object(sentence[place + 1 :]))
    return RootWords()


def _sentences(tokens: Sequence[str]) -> list[list[str]]:
    sentences: list[list[str]] = [[]]
    for token in tokens:
        if _END.match(token):
            sentences.append([])
        else:
            sentences[-1].append(token)
    found = [sentence for sentence in sentences if sentence]
    return [sentence for sentence in found if len(sentence) > 1] or found  # `Question:` alone is a label


def _verb_place(sentence: Sequence[str]) -> int | None:
    """Where the verb stands: at the beginning, behind a framing clause, or behind what asks for it."""
    starts = [0] + [place + 1 for place, token in enumerate(sentence) if token == ","]
    for start in starts if sentence[0] in _FRAMES or len(starts) > 1 else starts[:1]:
        place = _skip_polite(sentence, start)
        if place < len(sentence) and _is_request(sentence, place):
            return place
        if (asked := _asked_place(sentence, start)) is not None:
            return asked
    return None


def _skip_polite(sentence: Sequence[str], place: int) -> int:
    while place < len(sentence) and (sentence[place] in _POLITE or sentence[place].endswith("ly")):
        place += 1
    return place


def _is_request(sentence: Sequence[str], place: int) -> bool:
    """Whether a clause that begins here is an imperative: a base form, not the noun of `List comprehension is ...`."""
    following = sentence[place + 1 : place + 2]
    return sentence[place] not in _NO_VERBS and _is_base_form(sentence[place]) and following not in (["is"], ["are"], ["was"])


def _asked_place(sentence: Sequence[str], start: int) -> int | None:
    """The verb of `can you V`, `how do I V`, `you should V`, `your task is to V`, `I need you to V`."""
    for place in range(start, min(start + 12, len(sentence) - 1)):
        before = sentence[place - 1] if place > start else ""
        word, after = sentence[place], sentence[place + 1]
        if word == "," and place > start:
            return None
        asks = (word in _SUBJECTS and before in _AUXILIARIES) or (word in _AUXILIARIES and before in _SUBJECTS)
        wants = word == "to" and any(token in _ASKS_TO for token in sentence[max(start, place - 3) : place])
        if (asks or wants) and after not in _NO_VERBS and _is_base_form(after):
            return place + 1
    return None


def _object(rest: Sequence[str]) -> str:
    """The head of the noun phrase right behind a verb; "" where another word than one of its own comes first."""
    place = 0
    if rest[:1] and rest[0] in _PARTICLES and rest[1:2] and rest[1] in _BEFORE_NOUN:
        place = 1
    if rest[place : place + 1] and rest[place] in _RECIPIENTS and not (rest[place] == "her" and _may_be_noun(rest[place + 1 : place + 2])):
        place += 1
    head = ""
    for token in rest[place:]:
        if not head and (token in _BEFORE_NOUN or token in _JOINS or token.isdecimal()):
            continue
        if token in _BEHIND_NOUN or token in _BEFORE_NOUN or token in _JOINS or not token[0].isalpha():
            break
        if noun := _noun(token):
            head = noun
        elif head or not _is_adjective(token):
            break
    return head


def _may_be_noun(tokens: Sequence[str]) -> bool:
    return bool(tokens) and bool(_noun(tokens[0]))


@cache
def _lemmas(word: str) -> dict[str, tuple[str, ...]]:
    from lemminflect import getAllLemmas  # reads its lexicon at the first word

    found: dict[str, tuple[str, ...]] = getAllLemmas(word)
    return found


def _is_base_form(word: str) -> bool:
    return word in _lemmas(word).get("VERB", ())


def _noun(word: str) -> str:
    """The lemma of what can be a noun; "" for what cannot. A word that the lexicon lacks is taken for one: names and new words are."""
    last = word.rpartition("-")[2]
    if len(last) > LONGEST_WORD:
        return ""
    tags = _lemmas(last)
    if tags or last.endswith("ly"):
        return min(tags.get("NOUN", ("",)), key=len)
    return last


def _is_adjective(word: str) -> bool:
    tags = _lemmas(word.rpartition("-")[2])
    return "ADJ" in tags or "ADV" in tags or ("VERB" in tags and word.endswith(("ing", "ed", "en")))
