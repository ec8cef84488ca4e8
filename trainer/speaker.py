"""A loaded student that answers: batches of prompts in, texts out, what an item draws depending on its seed alone.

torch and transformers are imported inside the functions: this module is cheap to import.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from trainer.checkpoints import find_checkpoint, require_loadable
from trainer.config import RunConfig
from trainer.errors import Cancelled, OutOfMemory
from trainer.models import check_precision, context_of, device, dtype_of, load_model, load_tokenizer, memory_errors, pad_id_of
from trainer.respond_plan import Group, costs_of, plan_groups
from trainer.text import storable

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


def never() -> bool:
    """The should_stop of a student nobody stops."""
    return False


KEEP_EVERY_S = 0.5
"""Responses that end within so many seconds are handed on together: each hand-over may be a transaction."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids to be answered, and the seed of what is drawn for it. at: the caller's number of it."""

    at: int
    ids: Sequence[int]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a prompt: the text, stripped, its new tokens (the end token left out), and whether it was cut before its end."""

    at: int
    text: str
    tokens: int
    cut: bool


class Together:
    """Replies that end within KEEP_EVERY_S seconds, handed on to `keep` together."""

    def __init__(self, keep: Callable[[list[Reply]], None]) -> None:
        self._keep = keep
        self._waiting: list[Reply] = []
        self._handed_at = monotonic()

    def add(self, reply: Reply) -> None:
        self._waiting.append(reply)
        if monotonic() - self._handed_at >= KEEP_EVERY_S:
            self.hand_on()
            self._handed_at = monotonic()

    def hand_on(self) -> None:
        """Hand on all that wait, if any."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._keep(waiting)


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A loaded model that answers prompts. context: in tokens, prompt and answer together."""

    model: Any
    tokenizer: Any
    context: int
    stop_ids: tuple[int, ...]

    def plan(self, lengths: Sequence[int], *, most_rows: int, max_new_tokens: int) -> list[Group]:
        """Which prompts of these lengths are worked through together: see `trainer.respond_plan`."""
        from trainer.preflight import device_memory

        costs = costs_of(self.model, memory=device_memory())
        return plan_groups(lengths, most_rows=most_rows, max_new_tokens=max_new_tokens, costs=costs)

    def reply(
        self,
        prompts: Sequence[Prompt],
        *,
        at_once: int,
        max_new_tokens: int,
        temperature: float,
        keep: Callable[[list[Reply]], None],
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Answer all prompts, `at_once` at a time, and hand the replies to `keep` soon after each ends, also before a stop.

        temperature 0: greedy. Nothing is written beyond the context. Raises Cancelled, and OutOfMemory where not one fits.
        """
        from trainer.respond_cache import new_cache

        by_loop = new_cache(self.model) is not None
        answer = self._reply_by_loop if by_loop else self._reply_by_library
        answer(prompts, at_once=at_once, max_new_tokens=max_new_tokens, temperature=temperature, keep=keep, should_stop=should_stop)

    def _reply_by_loop(
        self,
        prompts: Sequence[Prompt],
        *,
        at_once: int,
        max_new_tokens: int,
        temperature: float,
        keep: Callable[[list[Reply]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """By `trainer.respond_loop`: a prompt that waits takes the place of a response that ended."""
        from trainer.respond_loop import ResponseLoop, Row

        together = Together(keep)

        def on_end(row: Row) -> None:
            text, tokens = self._read(row.ids)
            together.add(Reply(at=row.at, text=text, tokens=tokens, cut=tokens == len(row.ids)))

        loop = ResponseLoop(
            self.model,
            stop_ids=self.stop_ids,
            pad_id=pad_id_of(self.tokenizer),
            temperature=temperature,
            on_end=on_end,
            should_stop=should_stop,
        )
        rows = [Row(at=p.at, prompt=p.ids, limit=min(max_new_tokens, self.context - len(p.ids)), seed=p.seed) for p in prompts]
        try:
            loop.answer(rows, at_once)
        finally:
            together.hand_on()

    def _reply_by_library(
        self,
        prompts: Sequence[Prompt],
        *,
        at_once: int,
        max_new_tokens: int,
        temperature: float,
        keep: Callable[[list[Reply]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """The same in fixed batches, for models whose cache is of another kind than ours; half as many where memory runs out."""
        waiting = list(prompts)
        while waiting:
            some = waiting[:at_once]
            try:
                with memory_errors("one response. Lower respond.max_new_tokens, or choose a smaller student."):
                    replies = self.generate(
                        [prompt.ids for prompt in some],
                        max_new_tokens=max_new_tokens,
                        temperature=temperature,
                        seeds=[prompt.seed for prompt in some],
                        should_stop=should_stop,
                    )
            except OutOfMemory:
                if at_once == 1:
                    raise
                logger.warning("Not enough memory for %d responses at once: going on with %d.", at_once, at_once // 2)
                at_once //= 2
                continue
            width = max(len(prompt.ids) for prompt in some)
            limit = min(max_new_tokens, self.context - width)
            keep([Reply(at=p.at, text=text, tokens=tokens, cut=tokens >= limit) for p, (text, tokens) in zip(some, replies, strict=True)])
            waiting = waiting[len(some) :]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        should_stop: Callable[[], bool] = never,
    ) -> list[tuple[str, int]]:
        """By the library: the text, stripped, and the number of new tokens (the end token left out) for each prompt of one batch.

        temperature 0: greedy. Nothing is written beyond the context. Raises Cancelled when asked to stop half-way.
        """
        import torch
        from transformers import GenerationConfig

        width = max(len(prompt) for prompt in prompts)
        pad = pad_id_of(self.tokenizer)
        input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])  # (B, T), left-padded
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        make: Any = GenerationConfig  # untyped in the library
        settings = make(
            max_new_tokens=min(max_new_tokens, self.context - width), do_sample=False, pad_token_id=pad, eos_token_id=list(self.stop_ids)
        )
        with torch.inference_mode():
            output = self.model.generate(
                input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                logits_processor=[gumbel_noise(seeds, temperature)] if temperature > 0 else [],
                stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), should_stop(), device=ids.device)],
            )
        if should_stop():
            raise Cancelled("Stopped while the student was answering. What is kept stays kept; the stage can go on later.")
        return [self._read(row) for row in output[:, width:].tolist()]

    def _read(self, ids: list[int]) -> tuple[str, int]:
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return storable(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip(), end


def gumbel_noise(seeds: Sequence[int], temperature: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor after which the likeliest token is a sample at the temperature.

    Row i draws from a generator of its own seed, on the device of the scores: the same numbers whoever shares the batch, as long as the
    device is of the same kind.
    """
    import torch

    generators: list[torch.Generator] = []

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not generators:
            generators.extend(torch.Generator(scores.device).manual_seed(seed) for seed in seeds)
        noise = torch.empty_like(scores, dtype=torch.float32)  # (B, V)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / temperature - noise.log_()

    return add_noise


def require_sound(start: Path) -> None:
    """Raise ConfigError that names what is damaged of a checkpoint; every file is read, at about a second a gigabyte.

    A folder without a manifest has nothing it could be held against.
    """
    if start.is_dir() and find_checkpoint(start) is None:
        return
    logger.info("Checking the files of %s: about a second a gigabyte.", start)
    require_loadable(start)


def load_speaker(config: RunConfig, start: Path | None) -> Speaker:
    """Load a checkpoint, or the base student, for answering. Raises ConfigError where that is not possible."""
    from transformers import GenerationConfig

    if start is not None:
        require_sound(start)
    where = device()
    check_precision(config.student.precision, where)
    tokenizer = load_tokenizer(config, start)
    model = load_model(config, start, dtype=dtype_of(config.student.precision)).to(where).eval()
    known = model.generation_config.eos_token_id if model.generation_config else None
    listed = known if isinstance(known, list) else [known]
    stop_ids = sorted({int(i) for i in (*listed, tokenizer.eos_token_id) if i is not None})
    # A model's own sampling defaults (temperature, top-k, penalties) would otherwise be mixed into ours.
    make: Any = GenerationConfig  # untyped in the library
    model.generation_config = make(pad_token_id=pad_id_of(tokenizer), eos_token_id=stop_ids)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Speaker(model=model, tokenizer=tokenizer, context=context_of(model), stop_ids=tuple(stop_ids))
