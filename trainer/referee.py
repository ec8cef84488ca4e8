"""The referee: scores the teacher's and the student's response to an instruction, in a given order."""

from __future__ import annotations

from trainer.completions import Endpoint
from trainer.config import RoleConfig
from trainer.errors import RequestRefused, ResponseFormatError
from trainer.parsing import Scores, parse_scores
from trainer.prompts import REFEREE_SCHEMA, referee_messages
from trainer.records import Instruction, Judgement, Order, Response


class EndpointReferee:
    """Asks again, with another sample number, when the scores cannot be read; one that was cut off or refused would be again.

    Then gives a Judgement with the failure. Asks for JSON where the endpoint can be asked for it.
    """

    def __init__(self, endpoint: Endpoint, config: RoleConfig) -> None:
        self._endpoint = endpoint
        self._config = config

    async def judge(self, instruction: Instruction, *, teacher: Response, student: Response, order: Order) -> Judgement:
        texts = (teacher.text, student.text) if order is Order.TEACHER_FIRST else (student.text, teacher.text)
        messages = referee_messages(instruction, *texts, structured=self._endpoint.structured)
        schema = REFEREE_SCHEMA if self._endpoint.structured else None
        failure = evidence = key = ""
        for sample in range(self._config.asks):
            try:
                completion = await self._endpoint.complete("referee", messages, self._config, sample=sample, schema=schema)
                evidence, key = completion.text, completion.key
                if not completion.good:
                    failure = completion.defect
                    break
                scores = parse_scores(completion.text, shown=(instruction.prompt, *texts))
            except RequestRefused as error:
                failure = str(error)
                break
            except ResponseFormatError as error:
                failure = str(error)
                continue
            return _judgement(instruction, order, scores, scores.evidence or evidence, key)
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
