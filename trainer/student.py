"""The student: an open model that is tuned by `trainer.imitation` and answers here, in batches that a resume repeats exactly.

Departures from the authors' inference code, which asks one prompt at a time and keeps nothing until the end:
1. Prompts are sorted by length into fixed batches over the whole list. The plan depends on the list alone, so a resumed stage
   works through the same batches and gets the same texts.
2. Sampling is by Gumbel noise from a generator of each item's own: what an item draws depends on its seed, not on its neighbours.
3. No top-k: the whole distribution at the temperature. (Library defaults would cut it at the 50 likeliest tokens.)
4. No new [PAD] token. Padding is masked by length, so any id may stand there and the embedding keeps its size.
5. Text that looks like a special token inside an instruction is read as plain text in the paper's prompt form.

How models are found is in `trainer.models`, how texts become tokens in `trainer.encoding`, how a loaded model speaks in `trainer.speaker`.
All are cheap to import: torch and transformers are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.config import RunConfig
from trainer.encoding import encode_prompts
from trainer.models import memory_errors
from trainer.records import BenchmarkItem, Example, Instruction, Preflight, Response, TuningNews
from trainer.roles import CheckpointInfo
from trainer.seeds import derive_seed
from trainer.speaker import Speaker, load_speaker, never, plan_batches


class LocalStudent:
    """A student in this process; implements `roles.Student`. The model is loaded when it is first asked.

    folder: where checkpoints go; start: the checkpoint to begin from, None for the base student.
    iteration: part of the seed of every sampled response. should_stop is asked between steps; a True raises Cancelled.
    """

    def __init__(
        self, config: RunConfig, folder: Path, start: Path | None = None, *, iteration: int = 0, should_stop: Callable[[], bool] = never
    ) -> None:
        self.config = config
        self.folder = folder
        self.start = start
        self.iteration = iteration
        self.should_stop = should_stop
        self._speaker: Speaker | None = None

    def check(self) -> Preflight:
        """See `trainer.preflight.check_student`."""
        from trainer.preflight import check_student

        return check_student(self.config, folder=self.folder)

    def imitate(
        self, examples: Sequence[Example], *, iteration: int, tell: Callable[[TuningNews], None], use_saved: bool = False
    ) -> CheckpointInfo:
        """Tune on the examples, save a checkpoint in `folder`, and go on from it. See `trainer.imitation.imitate` for the errors."""
        from trainer.imitation import imitate

        info = imitate(
            self.config,
            examples,
            iteration=iteration,
            start=self.start,
            folder=self.folder,
            tell=tell,
            should_stop=self.should_stop,
            use_saved=use_saved,
        )
        self.start, self.iteration, self._speaker = info.path, iteration, None
        return info

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        """Answer each instruction not in `done`, a whole batch at a time.

        A batch with anything missing is generated whole, as it would have been at first, and only the missing responses are kept.
        A prompt longer than the model's context becomes a Response with a failure. Raises OutOfMemory, ConfigError, Cancelled.
        """
        seeds = {item.key: derive_seed(self.config.seed, "respond", self.iteration, item.key) for item in instructions}
        self._answer_all(instructions, done=done, temperature=self.config.respond.temperature, seeds=seeds, keep=keep)

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        """Answer the items not in `done` greedily, in the same fixed batches; a prompt that does not fit gets an empty reply."""
        by_key = {item.key: item for item in items}
        instructions = [Instruction(key=item.key, text=item.prompt) for item in items]

        def keep_replies(responses: list[Response]) -> None:
            keep([(by_key[response.instruction], response.text) for response in responses])

        self._answer_all(instructions, done=done, temperature=0.0, seeds={}, keep=keep_replies)

    def _answer_all(
        self,
        instructions: Sequence[Instruction],
        *,
        done: frozenset[str],
        temperature: float,
        seeds: dict[str, int],
        keep: Callable[[list[Response]], None],
    ) -> None:
        if all(item.key in done for item in instructions):
            return
        speaker = self.speaker
        settings = self.config.respond
        prompts = encode_prompts(speaker.tokenizer, instructions, template=self.config.student.template)
        too_long = [i for i, prompt in enumerate(prompts) if len(prompt) >= speaker.context]
        refused = [_refuse(instructions[i], len(prompts[i]), speaker.context) for i in too_long if instructions[i].key not in done]
        if refused:
            keep(refused)
        fitting = sorted(set(range(len(prompts))) - set(too_long))
        for batch in plan_batches([len(prompts[i]) for i in fitting], settings.batch_size):
            batch = [fitting[i] for i in batch]
            keys = [instructions[i].key for i in batch]
            if all(key in done for key in keys):
                continue
            with memory_errors(f"a batch of {len(batch)} responses. Lower respond.batch_size or respond.max_new_tokens."):
                replies = speaker.generate(
                    [prompts[i] for i in batch],
                    max_new_tokens=settings.max_new_tokens,
                    temperature=temperature,
                    seeds=[seeds.get(key, 0) for key in keys],
                    should_stop=self.should_stop,
                )
            responses = [Response(instruction=key, text=text, tokens=tokens) for key, (text, tokens) in zip(keys, replies, strict=True)]
            keep([response for response in responses if response.instruction not in done])

    @property
    def speaker(self) -> Speaker:
        """The loaded model, ready to answer."""
        if self._speaker is None:
            with memory_errors(f"the student {self.config.student.model}. Choose a smaller one, or a device with more memory."):
                self._speaker = load_speaker(self.config, self.start)
        return self._speaker


def _refuse(instruction: Instruction, tokens: int, context: int) -> Response:
    failure = f"The prompt is {tokens} tokens long; the student reads at most {context - 1} and needs one to answer."
    return Response(instruction=instruction.key, text="", failure=failure)
