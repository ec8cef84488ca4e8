"""The generator: writes a new instruction after a parent, of its kind or rarer."""

from __future__ import annotations

from trainer.completions import Endpoint
from trainer.config import GeneratorConfig
from trainer.errors import ResponseFormatError
from trainer.prompts import generator_messages
from trainer.records import Completion, Instruction


class EndpointGenerator:
    """One ask per attempt: a candidate that does not serve is rejected, and another parent is drawn."""

    def __init__(self, endpoint: Endpoint, config: GeneratorConfig) -> None:
        self._endpoint = endpoint
        self._config = config

    async def create(self, parent: Instruction, *, easy: bool, sample: int) -> Completion | None:
        try:
            messages = generator_messages(parent, easy=easy)
            return await self._endpoint.complete(messages, self._config, max_tokens=self._longest(parent), sample=sample)
        except ResponseFormatError:
            return None

    def _longest(self, parent: Instruction) -> int:
        """Tokens a new instruction may have: so many for each word of its parent, at most the longest."""
        if not self._config.tokens_per_word:
            return self._config.max_tokens
        return max(1, min(self._config.max_tokens, round(self._config.tokens_per_word * len(parent.prompt.split()))))
