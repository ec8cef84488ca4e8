"""A loaded student that answers: batches of prompts in, texts out, what an item draws depending on its seed alone.

torch and transformers are imported inside the functions: this module is cheap to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoints import read_checkpoint
from trainer.config import RunConfig
from trainer.errors import Cancelled
from trainer.models import check_precision, context_of, device, dtype_of, load_model, load_tokenizer, pad_id_of
from trainer.text import storable

if TYPE_CHECKING:
    import torch


def never() -> bool:
    """The should_stop of a student nobody stops."""
    return False


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A loaded model that answers batches of prompts. context: in tokens, prompt and answer together."""

    model: Any
    tokenizer: Any
    context: int
    stop_ids: tuple[int, ...]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        should_stop: Callable[[], bool] = never,
    ) -> list[tuple[str, int]]:
        """The text, stripped, and the number of new tokens (the end token left out) for each prompt of one batch.

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

    Row i draws from a generator of its own seed, on the CPU: the same numbers whatever the device and whoever shares the batch.
    """
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape)  # (B, V)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / temperature - noise.log_().to(scores.device)

    return add_noise


def load_speaker(config: RunConfig, start: Path | None) -> Speaker:
    """Load a checkpoint, or the base student, for answering. Raises ConfigError where that is not possible."""
    from transformers import GenerationConfig

    if start is not None and not start.is_dir():
        read_checkpoint(start)  # says what is missing
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


def plan_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions in batches of `size`, longest first, so that a batch that does not fit in memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[at : at + size] for at in range(0, len(order), size)]
