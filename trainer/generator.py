"""The generator: writes a new instruction after a parent, of its kind or rarer."""

from __future__ import annotations

from trainer.completions import Endpoint
from trainer.config import GeneratorConfig
from trainer.errors import ResponseFormatError
from trainer.prompts import GENERATOR_SCHEMA, generator_messages, prompt_name
from trainer.records import Completion, Instruction

JSON_TOKENS = 16
"""What the JSON around an instruction takes, generously."""


class EndpointGenerator:
    """One ask per attempt: a candidate that does not serve is rejected, and another parent is drawn."""

    def __init__(self, endpoint: Endpoint, config: GeneratorConfig) -> None:
        self._endpoint = endpoint
        self._config = config

    @property
    def prompt(self) -> str:
        return prompt_name("generator", structured=self._endpoint.structured)

    async def create(self, parent: Instruction, *, easy: bool, sample: int) -> Completion | None:
        messages = generator_messages(parent, easy=easy, structured=self._endpoint.structured)
        schema = GENERATOR_SCHEMA if self._endpoint.structured else None
        try:
            return await self._endpoint.complete(
                "generator", messages, self._config, max_tokens=self._longest(parent), sample=sample, schema=schema
            )
        except ResponseFormatError:
            return None

    def _longest(self, parent: Instruction) -> int:
        """Tokens a new instruction may have: so many for each word of its parent, at most the longest; and those of JSON around it."""
        longest = self._config.max_tokens
        if self._config.tokens_per_word:
            longest = max(1, min(longest, round(self._config.tokens_per_word * len(parent.prompt.split()))))
        return longest + JSON_TOKENS if self._endpoint.structured else longest
