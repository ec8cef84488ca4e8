"""The generator: writes a new instruction after a parent, of its kind or rarer."""

from __future__ import annotations

from trainer.completions import Endpoint
from trainer.config import RoleConfig
from trainer.errors import ResponseFormatError
from trainer.prompts import generator_messages
from trainer.records import Completion, Instruction


class EndpointGenerator:
    """One ask per attempt: a candidate that does not serve is rejected, and another parent is drawn."""

    def __init__(self, endpoint: Endpoint, config: RoleConfig) -> None:
        self._endpoint = endpoint
        self._config = config

    async def create(self, parent: Instruction, *, easy: bool, sample: int) -> Completion | None:
        try:
            return await self._endpoint.complete(generator_messages(parent, easy=easy), self._config, sample=sample)
        except ResponseFormatError:
            return None
