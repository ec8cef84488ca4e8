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
    """Whose response the referee read first, or which one it read alone."""

    TEACHER_FIRST = "teacher_first"
    STUDENT_FIRST = "student_first"
    TEACHER_ALONE = "teacher_alone"
    STUDENT_ALONE = "student_alone"


class Fate(StrEnum):
    """What became of a candidate instruction."""

    ACCEPTED = "accepted"
    TOO_SIMILAR = "too_similar"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    CUT_OFF = "cut_off"
    MARKER_WORDS = "marker_words"
    BAD_START = "bad_start"
    NOT_AN_INSTRUCTION = "not_an_instruction"
    WRONG_LANGUAGE = "wrong_language"
    CONTAMINATED = "contaminated"
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
    """What the teacher or a student said to an instruction; `failure` says why there is no usable text.

    cut: the student would have gone on, but had as many tokens as it may, or as its context has. Of the teacher such texts are not kept.
    """

    instruction: str
    text: str
    failure: str = ""
    tokens: int = 0
    completion: str = ""
    cut: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement(Record):
    """One referee call. Scores are 1..10, or None with a `failure`; never a stand-in number.

    Of a response that was read alone, the other's score is None too. referee: the endpoint that was asked; sample: 0 for the first of
    several of one kind; prompt: which of our prompts, in which version, as "joint 1".
    """

    instruction: str
    order: Order
    teacher_score: float | None
    student_score: float | None
    evidence: str
    failure: str = ""
    completion: str = ""
    referee: str = ""
    sample: int = 0
    prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict(Record):
    """The judgements of an instruction together; d = teacher_score - student_score, hard when d >= tau.

    tries: how often the referee was put the case. by_hand: a person gave the scores. left_out: quarantined, and a person wants it to
    stay so: it is not judged again.
    """

    instruction: str
    label: Label
    teacher_score: float | None = None
    student_score: float | None = None
    discrepancy: float | None = None
    inconsistent: bool = False
    reason: str = ""
    by_hand: bool = False
    left_out: bool = False
    tries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate(Record):
    """One attempt at a new instruction, kept whatever became of it.

    nearest: the known instruction most like it, with the ROUGE-L F1 between them, where that reaches the limit; overlap: the benchmark
    item it is too close to, in words; prompt: which of our prompts, in which version, as "generator 1".
    """

    key: str
    origin: Origin
    attempt: int
    parent: str
    text: str
    fate: Fate
    nearest: str = ""
    similarity: float | None = None
    completion: str = ""
    overlap: str = ""
    prompt: str = ""


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
    """One logged step of training: its loss and learning rate, and the tokens of response per second.

    memory_gib: the peak so far of one process; gpu_percent: how busy its GPU was at that moment, None where there is none to ask.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    memory_gib: float | None = None
    gpu_percent: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight(Record):
    """What an imitation will take, found out before its first step. Sizes are in bytes, of one process.

    Before the teacher is asked there are no examples yet: examples, steps, the tokens and seconds are then 0 or None.
    cut: responses longer than an example may be; left_out: prompts that fill it. activations: an estimate, the rest is counted;
    libraries: what those that are loaded take themselves, where the device is the computer's own memory.
    memory: what the device has; problems: what a person should know, a sentence each.
    """

    model: str
    method: str
    precision: str
    parameters: int
    trainable: int
    device: str
    processes: int = 1
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    libraries: int = 0
    memory: int = 0
    disk_needed: int = 0
    disk_free: int = 0
    context: int = 0
    examples: int = 0
    cut: int = 0
    left_out: int = 0
    steps: int = 0
    response_tokens: int = 0
    device_tokens: int = 0
    seconds: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def memory_needed(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.libraries


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownExample(Record):
    """An example as the student reads it: pieces of text, each with whether its tokens carry loss."""

    instruction: str
    tokens: int
    learnt: int
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstBatch(Record):
    """The first examples of the first batch, decoded, so that a wrong template is seen before an hour is spent."""

    examples: tuple[ShownExample, ...]
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved(Record):
    """A resumable save was written after this step."""

    step: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark(Record):
    """What a person should know about how an imitation goes, in a sentence."""

    text: str


TuningNews = Preflight | FirstBatch | Metric | Saved | Remark
"""What an imitation tells while it is under way."""

_NEWS: dict[str, type[Record]] = {"preflight": Preflight, "first_batch": FirstBatch, "metric": Metric, "saved": Saved, "remark": Remark}


def news_as_dict(news: TuningNews) -> dict[str, Any]:
    """News as JSON-ready data; `news_from_dict` gives it back."""
    kind = next(name for name, record in _NEWS.items() if isinstance(news, record))
    return {"kind": kind, **news.as_dict()}


def news_from_dict(data: dict[str, Any]) -> TuningNews:
    """News from what `news_as_dict` gave. Raises KeyError for a kind nobody knows."""
    values = {name: value for name, value in data.items() if name != "kind"}
    match data["kind"]:
        case "first_batch":
            shown = (ShownExample(**{**example, "pieces": tuple(map(tuple, example["pieces"]))}) for example in values["examples"])
            return FirstBatch(examples=tuple(shown), batch_size=values["batch_size"])
        case "preflight":
            return Preflight(**{**values, "problems": tuple(values["problems"])})
        case kind:
            return _NEWS[kind](**values)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkItem(Record):
    """A held-out question with its gold answer. question: what is asked, where the prompt has more than that."""

    key: str
    task: str
    prompt: str
    gold: str
    question: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkAnswer(Record):
    """What a student answered to a benchmark item; `correct` is None when it could not be read."""

    item: str
    task: str
    prompt: str
    gold: str
    reply: str
    correct: bool | None
