"""The referee: scores the teacher's and the student's response to an instruction, together in a given order, or one of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.completions import Endpoint
from trainer.config import RoleConfig
from trainer.errors import RequestRefused, ResponseFormatError
from trainer.parsing import parse_score, parse_scores
from trainer.prompts import POINTWISE_SCHEMA, REFEREE_SCHEMA, Message, pointwise_messages, prompt_name, referee_messages
from trainer.records import Completion, Instruction, Judgement, Order, Response


class EndpointReferee:
    """One endpoint that judges. Asks again, with another sample number, when the scores cannot be read.

    A reply that was cut off or refused would be again: it is not asked for twice. Then gives a Judgement with the failure. Judging again
    reads the replies of earlier times first, which are kept and may be readable by now, and then asks for new ones. Asks for JSON where
    the endpoint can be asked for it. samples: how many judgements of one kind a case gets; no two of them share a sample number.
    """

    def __init__(self, endpoint: Endpoint, config: RoleConfig, *, samples: int = 1) -> None:
        self._endpoint = endpoint
        self._config = config
        self._samples = samples

    async def judge(
        self,
        instruction: Instruction,
        *,
        teacher: Response,
        student: Response,
        order: Order,
        referee: str = "",
        sample: int = 0,
        again: int = 0,
    ) -> Judgement:
        question = _question(instruction, teacher.text, student.text, order, structured=self._endpoint.structured)
        failed = Judgement(
            instruction=instruction.key,
            order=order,
            teacher_score=None,
            student_score=None,
            evidence="",
            referee=referee,
            sample=sample,
            prompt=question.prompt,
        )
        for number in range((again + 1) * self._config.asks):
            try:
                completion = await self._endpoint.complete(
                    "referee", question.messages, self._config, sample=sample + number * self._samples, schema=question.schema
                )
                failed = replace(failed, evidence=completion.text, completion=completion.key)
                if not completion.good and number >= again * self._config.asks:
                    return replace(failed, failure=completion.defect)
                if not completion.good:
                    continue
                return question.read(failed, completion)
            except RequestRefused as error:
                return replace(failed, failure=str(error))
            except ResponseFormatError as error:
                failed = replace(failed, failure=str(error))
        return failed


class Panel:
    """Several referees as one: each judgement goes to the endpoint that is named."""

    def __init__(self, referees: Mapping[str, EndpointReferee]) -> None:
        self._referees = referees

    async def judge(
        self,
        instruction: Instruction,
        *,
        teacher: Response,
        student: Response,
        order: Order,
        referee: str = "",
        sample: int = 0,
        again: int = 0,
    ) -> Judgement:
        one = self._referees[referee]
        return await one.judge(instruction, teacher=teacher, student=student, order=order, referee=referee, sample=sample, again=again)


@dataclass(frozen=True)
class _Question:
    """What a referee is asked, and how its reply is read. texts: the responses it reads, in order."""

    messages: Sequence[Message]
    schema: Mapping[str, object] | None
    prompt: str
    instruction: Instruction
    order: Order
    texts: tuple[str, ...]

    def read(self, judgement: Judgement, completion: Completion) -> Judgement:
        """The judgement with its scores. Raises ResponseFormatError."""
        shown = (self.instruction.prompt, *self.texts)
        if self.order in (Order.TEACHER_ALONE, Order.STUDENT_ALONE):
            score = parse_score(completion.text, shown=shown)
            judgement = replace(judgement, failure="", evidence=score.evidence or completion.text)
            if self.order is Order.TEACHER_ALONE:
                return replace(judgement, teacher_score=score.value)
            return replace(judgement, student_score=score.value)
        scores = parse_scores(completion.text, shown=shown)
        teacher, student = (scores.first, scores.second) if self.order is Order.TEACHER_FIRST else (scores.second, scores.first)
        return replace(judgement, failure="", evidence=scores.evidence or completion.text, teacher_score=teacher, student_score=student)


def _question(instruction: Instruction, teacher: str, student: str, order: Order, *, structured: bool) -> _Question:
    alone = {Order.TEACHER_ALONE: teacher, Order.STUDENT_ALONE: student}
    if order in alone:
        return _Question(
            messages=pointwise_messages(instruction, alone[order], structured=structured),
            schema=POINTWISE_SCHEMA if structured else None,
            prompt=prompt_name("pointwise", structured=structured),
            instruction=instruction,
            order=order,
            texts=(alone[order],),
        )
    first, second = (teacher, student) if order is Order.TEACHER_FIRST else (student, teacher)
    return _Question(
        messages=referee_messages(instruction, first, second, structured=structured),
        schema=REFEREE_SCHEMA if structured else None,
        prompt=prompt_name("joint", structured=structured),
        instruction=instruction,
        order=order,
        texts=(first, second),
    )
