"""The nouns of the loop, as frozen records; the words are those of docs/glossary.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Where an instruction comes from."""

    SEED = "seed"
    HARD = "hard"
    EASY = "easy"


class Label(StrEnum):
    """What a verdict says of an instruction."""

    HARD = "hard"
    EASY = "easy"
    QUARANTINED = "quarantined"


class Order(StrEnum):
    """Whose response the referee read first."""

    TEACHER_FIRST = "teacher_first"
    STUDENT_FIRST = "student_first"


class Fate(StrEnum):
    """What became of a candidate instruction."""

    ACCEPTED = "accepted"
    TOO_SIMILAR = "too_similar"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    CUT_OFF = "cut_off"
    MARKER_WORDS = "marker_words"
    BAD_START = "bad_start"
    NO_REPLY = "no_reply"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Base of all records: plain data that goes to JSON and back."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction(Record):
    """A task text with an optional input.

    `key` is unique within a run and the same on the command line and on the web: it seeds what is drawn for this item.
    """

    key: str
    text: str
    input: str = ""
    origin: Origin = Origin.SEED
    iteration: int = 0
    parent: str = ""
    kind: str = ""

    @property
    def prompt(self) -> str:
        """The text every role is shown: the input, if any, on its own paragraph below the task (METHOD 1, item 5)."""
        return f"{self.text}\n\n{self.input}" if self.input else self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Response(Record):
    """What the teacher or a student said to an instruction; `failure` says why there is no usable text."""

    instruction: str
    text: str
    failure: str = ""
    tokens: int = 0
    completion: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement(Record):
    """One referee call. Scores are 1..10, or None with a `failure`; never a stand-in number."""

    instruction: str
    order: Order
    teacher_score: float | None
    student_score: float | None
    evidence: str
    failure: str = ""
    completion: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict(Record):
    """Both judgements of an instruction together; d = teacher_score - student_score, hard when d >= tau."""

    instruction: str
    label: Label
    teacher_score: float | None = None
    student_score: float | None = None
    discrepancy: float | None = None
    inconsistent: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate(Record):
    """One attempt at a new instruction, kept whatever became of it."""

    key: str
    origin: Origin
    attempt: int
    parent: str
    text: str
    fate: Fate
    nearest: str = ""
    similarity: float | None = None
    completion: str = ""


WHOLE = frozenset({"stop", "end_turn", "eos", "eos_token", "stop_sequence", "complete"})
"""Finish reasons that mean: the model ended its reply by itself. Each server has its own words for that."""

NO_REASON = "none given"
"""Stands for the finish reason where a server gives none: the reply may have been cut off, and nobody would know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion(Record):
    """One paid API call, keyed by its canonical request. Only an answer is kept, never a failure.

    A reply that is not whole is kept too, since it was paid, but is never `good`. estimated: the server told no usage, so that the
    tokens are counted by us. cached_tokens: those of the prompt that the server had seen before. nanodollars: what it cost.
    """

    key: str
    endpoint: str
    model: str
    request: dict[str, Any]
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    role: str = ""
    cached_tokens: int = 0
    nanodollars: int = 0
    estimated: bool = False
    batch: bool = False

    @property
    def good(self) -> bool:
        """Whether the reply is whole. Only what is known to mean so does: a reason that is new to us may be a new way to be cut off."""
        return self.finish_reason in WHOLE

    @property
    def defect(self) -> str:
        """Why the reply is not whole, as a sentence; "" where it is."""
        if self.good:
            return ""
        if self.finish_reason == NO_REASON:
            return f"The reply may be cut off: the server gives no finish_reason with its {self.completion_tokens} tokens."
        return f"The reply was cut off at {self.completion_tokens} tokens ({self.finish_reason})."


@dataclass(frozen=True, kw_only=True, slots=True)
class Example(Record):
    """What a student is tuned on: an instruction and the teacher's response to it."""

    instruction: Instruction
    response: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric(Record):
    """One logged step of training: its loss and learning rate, and the tokens of response per second."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkItem(Record):
    """A held-out question with its gold answer."""

    key: str
    task: str
    prompt: str
    gold: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkAnswer(Record):
    """What a student answered to a benchmark item; `correct` is None when it could not be read."""

    item: str
    task: str
    prompt: str
    gold: str
    reply: str
    correct: bool | None
