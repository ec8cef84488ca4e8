"""Rules for candidates that go beyond the paper's and the authors' code: what is no instruction at all, and what is in another language.

They reject what a reply says for certain: a refusal, talk before or after the task, an answer's label, a role's answer about itself.
Where a task may begin like that ("Sorry is a poem by ...: translate it", "Here is a list; sort it") the candidate stays. A parent
repeated word by word is found by its similarity.
"""

from __future__ import annotations

import re

from trainer.language import language_of
from trainer.records import Fate
from trainer.similarity import tokenize

LEAST_WORDS = 3
BEGINNING = 400
"""So many characters are looked at for what a reply begins with."""

_DRESS = r"[\s\W_]*"
"""What may stand around: quotation marks, asterisks, bullets."""

_APOSTROPHE = r"['\u2019\u02bc]?"

_REFUSALS = (
    rf"i{_APOSTROPHE}\s*a?m\s+(?:so\s+|very\s+|really\s+)?sorry\s*(?:[,.!]|but\b|i\b)",
    r"(?:so\s+|very\s+)?sorry\s*[,.!]\s*(?:but|i)\b",
    r"(?:my\s+apologies|i\s+apologi[sz]e)\b",
    rf"(?:unfortunately\s*,?\s*)?i\s+(?:can(?:\s*no|{_APOSTROPHE})t|am\s+(?:unable|not\s+able)|won{_APOSTROPHE}t|will\s+not|must\s+decline)\s+"
    r"(?:be\s+able\s+to\s+)?(?:help|assist|create|write|provide|generate|comply|fulfil|produce|do\b|continue|engage|offer|give|to\b)",
    r"as\s+an?\s+(?:artificial\s+intelligence|ai(?:\s+(?:language\s+model|assistant|model))?|(?:large\s+)?language\s+model)\s*,?\s*i\b",
    # the same in languages a generator may fall into
    r"(?:je\s+suis\s+)?d\u00e9sol\u00e9e?\s*[,.!]",
    r"(?:lo\s+siento|lo\s+lamento)\s*[,.!]",
    r"es\s+tut\s+mir\s+leid\b|entschuldigung\s*[,.!]",
    r"mi\s+dispiace\s*[,.!]|(?:sinto\s+muito|desculpe)\s*[,.!]",
    r"(?:\u5f88)?(?:\u62b1\u6b49|\u5bf9\u4e0d\u8d77|\u5c0d\u4e0d\u8d77)\s*[,\uff0c\u3002!\uff01]",
    r"\u4f5c\u4e3a(?:\u4e00\u4e2a|\u4e00\u500b)?(?:ai|\u4eba\u5de5\u667a\u80fd|\u8bed\u8a00\u6a21\u578b)",
    r"\u7533\u3057\u8a33(?:\u3042\u308a\u307e\u305b\u3093|\u3054\u3056\u3044\u307e\u305b\u3093)",
    r"\u043a\s+\u0441\u043e\u0436\u0430\u043b\u0435\u043d\u0438\u044e\s*,?\s*\u044f\b|(?:\u043f\u0440\u043e\u0441\u0442\u0438\u0442\u0435|\u0438\u0437\u0432\u0438\u043d\u0438\u0442\u0435)\s*,\s*(?:\u043d\u043e\s+)?\u044f\b",
)
_TALK = (
    r"(?:sure(?:\s+thing)?|certainly|of\s+course|absolutely|okay|ok|alright|great|no\s+problem|got\s+it|understood)\s*[,.!:\u2013\u2014-]+\s*"
    r"(?:here\b|i\b|let\s+me\b|this\s+is\b|below\b|happy\b|the\s+new\b|my\b|a\s+new\b|$)",
    r"(?:sure|certainly|of\s+course|absolutely)\s*!",
    rf"(?:here{_APOSTROPHE}s|here\s+(?:is|are)|below\s+is|this\s+is)\s+(?:a|an|the|your|my|one|another)\s+(?:[\w-]+\s+){{0,4}}"
    r"(?:instruction|prompt|task)\b[^.?!\n]{0,80}[:\n]",
    rf"i(?:{_APOSTROPHE}ve|\s+have)\s+(?:created|written|made|come\s+up\s+with)\s+(?:a|an|the|this|your|one)\s+(?:[\w-]+\s+){{0,4}}"
    r"(?:instruction|prompt|task)\b",
    r"(?:voici|voil\u00e0)\s+(?:une|la|votre)\s+(?:nouvelle\s+)?(?:instruction|consigne|t\u00e2che)\b",
    r"aqu\u00ed\s+(?:tienes|est\u00e1|hay)\s+(?:una|la|tu)\s+(?:nueva\s+)?(?:instrucci\u00f3n|tarea|consigna)\b",
    r"hier\s+ist\s+(?:eine|die|ihre|deine)\s+(?:neue\s+)?(?:anweisung|aufgabe|instruktion)\b",
    r"(?:\u597d\u7684|\u5f53\u7136|\u7576\u7136)\s*[,\uff0c\u3002!\uff01:\uff1a]",
    r"(?:\u4ee5\u4e0b|\u4e0b\u9762|\u8fd9)\u662f(?:\u4e00(?:\u4e2a|\u6761|\u500b|\u689d))?(?:\u65b0)?\u7684?(?:\u6307\u4ee4|\u4efb\u52a1|\u4efb\u52d9)",
)
_ANSWERS = (
    r"(?:(?:the\s+)(?:correct\s+)?|correct\s+)(?:answer|response|output|solution|result)(?:\s+is)?\s*:",
    r"answer\s*:(?!\s*(?:true\s+or\s+false|yes\s+or\s+no))",
    r"###\s*(?:response|answer|output)\b",
    r"(?:r\u00e9ponse|respuesta|antwort|risposta|resposta|\u043e\u0442\u0432\u0435\u0442)\s*:",
    r"(?:\u7b54\u6848|\u56de\u7b54|\u56de\u7b54\u306f|\u7b54\u3048)\s*[:\uff1a]",
)
_BEGINS = re.compile(rf"{_DRESS}(?:{'|'.join((*_REFUSALS, *_TALK, *_ANSWERS))})", re.IGNORECASE)

_QUOTED = re.compile(
    r"\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u00ab[^\u00bb]*\u00bb|\u201e[^\u201c\u201d]*[\u201c\u201d]|\u300c[^\u300d]*\u300d"
)


def strict_fate(text: str, *, parent: str) -> Fate:
    """What becomes of a text that is not empty, after a parent's text; ACCEPTED where no rule speaks against it."""
    if len(tokenize(text)) < LEAST_WORDS:
        return Fate.TOO_SHORT
    if _BEGINS.match(text[:BEGINNING]):
        return Fate.NOT_AN_INSTRUCTION
    ours, theirs = _languages(text), _languages(parent)
    return Fate.WRONG_LANGUAGE if ours and theirs and ours.isdisjoint(theirs) else Fate.ACCEPTED


def _languages(text: str) -> set[str]:
    """The languages a task may be said to be in: a task in one may come with a passage, or a quotation, in another."""
    first_line = text.strip().partition("\n")[0]
    return {language_of(part) for part in (text, first_line, _QUOTED.sub(" ", text))} - {""}
