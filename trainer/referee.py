"""The referee: scores the teacher's and the student's response to an instruction, in a given order."""

from __future__ import annotations

from trainer.completions import Endpoint
from trainer.config import RoleConfig
from trainer.errors import ResponseFormatError
from trainer.parsing import Scores, parse_scores
from trainer.prompts import referee_messages
from trainer.records import Instruction, Judgement, Order, Response


class EndpointReferee:
    """Asks again, with another sample number, when the scores cannot be read (not when the reply was cut off: it would be again).

    Then gives a Judgement with the failure.
    """

    def __init__(self, endpoint: Endpoint, config: RoleConfig) -> None:
        self._endpoint = endpoint
        self._config = config

    async def judge(self, instruction: Instruction, *, teacher: Response, student: Response, order: Order) -> Judgement:
        texts = (teacher.text, student.text) if order is Order.TEACHER_FIRST else (student.text, teacher.text)
        messages = referee_messages(instruction, *texts)
        failure = evidence = key = ""
        for sample in range(self._config.asks):
            try:
                completion = await self._endpoint.complete(messages, self._config, sample=sample)
                evidence, key = completion.text, completion.key
                if completion.finish_reason == "length":
                    failure = f"The reply was cut off at {completion.completion_tokens} tokens."
                    break
                scores = parse_scores(completion.text)
            except ResponseFormatError as error:
                failure = str(error)
                continue
            return _judgement(instruction, order, scores, evidence, key)
        return Judgement(
            instruction=instruction.key,
            order=order,
            teacher_score=None,
            student_score=None,
            evidence=evidence,
            failure=failure,
            completion=key,
        )


def _judgement(instruction: Instruction, order: Order, scores: Scores, evidence: str, key: str) -> Judgement:
    teacher, student = (scores.first, scores.second) if order is Order.TEACHER_FIRST else (scores.second, scores.first)
    return Judgement(
        instruction=instruction.key, order=order, teacher_score=teacher, student_score=student, evidence=evidence, completion=key
    )
