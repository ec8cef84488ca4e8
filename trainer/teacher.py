"""The teacher: answers instructions through an endpoint."""

from __future__ import annotations

from trainer.completions import Endpoint
from trainer.config import RoleConfig
from trainer.errors import RequestRefused, ResponseFormatError
from trainer.prompts import teacher_messages
from trainer.records import Instruction, Response


class EndpointTeacher:
    """Asks again, with another sample number, when a reply is empty; one that was cut off or refused would be again.

    Then gives a failed Response.
    """

    def __init__(self, endpoint: Endpoint, config: RoleConfig) -> None:
        self._endpoint = endpoint
        self._config = config

    async def respond(self, instruction: Instruction) -> Response:
        messages = teacher_messages(instruction)
        failure = ""
        for sample in range(self._config.asks):
            try:
                completion = await self._endpoint.complete("teacher", messages, self._config, sample=sample)
            except RequestRefused as error:
                failure = str(error)
                break
            except ResponseFormatError as error:
                failure = str(error)
                continue
            if not completion.good:
                failure = completion.defect
                break
            text = completion.text.strip()
            if text:
                return Response(instruction=instruction.key, text=text, tokens=completion.completion_tokens, completion=completion.key)
            failure = "The reply was empty."
        return Response(instruction=instruction.key, text="", failure=failure)
