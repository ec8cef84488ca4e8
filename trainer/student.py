"""The student: an open model that is tuned by `trainer.imitation` and answers here, in groups that a resume repeats exactly.

Departures from the authors' inference code, which asks one prompt at a time and keeps nothing until the end:
1. Prompts are sorted by length into groups over the whole list (`trainer.respond_plan`), and within a group a prompt that waits takes the
   place of a response that ended (`trainer.respond_loop`). The plan depends on the whole list alone, so a resumed stage works through
   the same groups and gets the same texts: a group with anything missing is generated whole, as it would have been at first.
2. Sampling is by Gumbel noise from a generator of each item's own: what an item draws depends on its seed, not on its neighbours.
3. No top-k: the whole distribution at the temperature. (Library defaults would cut it at the 50 likeliest tokens.)
4. No new [PAD] token. Padding is masked by length, so any id may stand there and the embedding keeps its size.
5. Text that looks like a special token inside an instruction is read as plain text in the paper's prompt form.

How models are found is in `trainer.models`, how texts become tokens in `trainer.encoding`, how a loaded model speaks in `trainer.speaker`.
All are cheap to import: torch and transformers are imported inside the functions.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.accelerated import tune_in_smaller_pieces
from trainer.config import RunConfig
from trainer.encoding import encode_prompts
from trainer.models import memory_errors
from trainer.records import BenchmarkItem, Example, Instruction, Preflight, Response, TuningNews
from trainer.roles import CheckpointInfo
from trainer.seeds import derive_seed
from trainer.speaker import Prompt, Reply, Speaker, load_speaker, never

logger = logging.getLogger(__name__)


class LocalStudent:
    """A student in this process; implements `roles.Student`. The model is loaded when it is first asked.

    folder: where checkpoints go; start: the checkpoint to begin from, None for the base student.
    iteration: part of the seed of every sampled response. should_stop is asked between steps; a True raises Cancelled.
    tries_again: whether a tuning that runs out of memory is tried once more in smaller pieces; not where whoever started us does that.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        start: Path | None = None,
        *,
        iteration: int = 0,
        should_stop: Callable[[], bool] = never,
        tries_again: bool = True,
    ) -> None:
        self.config = config
        self.folder = folder
        self.start = start
        self.iteration = iteration
        self.should_stop = should_stop
        self.tries_again = tries_again
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

        def tune(config: RunConfig, tell: Callable[[TuningNews], None]) -> CheckpointInfo:
            self._speaker = None
            _free_memory()
            return imitate(
                config,
                examples,
                iteration=iteration,
                start=self.start,
                folder=self.folder,
                tell=tell,
                should_stop=self.should_stop,
                use_saved=use_saved,
            )

        info = tune_in_smaller_pieces(self.config, tell, tune) if self.tries_again else tune(self.config, tell)
        self.start, self.iteration, self._speaker = info.path, iteration, None
        return info

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        """Answer each instruction not in `done`; each response is kept within a second of its end.

        A group with anything missing is generated whole, as it would have been at first, and only the missing responses are kept.
        A prompt longer than the model's context becomes a Response with a failure. Raises OutOfMemory, ConfigError, Cancelled.
        """
        seeds = {item.key: derive_seed(self.config.seed, "respond", self.iteration, item.key) for item in instructions}
        self._answer_all(instructions, done=done, temperature=self.config.respond.temperature, seeds=seeds, keep=keep)

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        """Answer the items not in `done` greedily, in the same way; a prompt that does not fit gets an empty reply."""
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
        speaker, settings = self.speaker, self.config.respond
        prompts = encode_prompts(speaker.tokenizer, instructions, template=self.config.student.template)
        fitting = _keep_refused(instructions, prompts, context=speaker.context, done=done, keep=keep)
        plan = speaker.plan([len(prompts[i]) for i in fitting], most_rows=settings.batch_size, max_new_tokens=settings.max_new_tokens)
        cut = 0

        def keep_replies(replies: list[Reply]) -> None:
            nonlocal cut
            new = [reply for reply in replies if instructions[reply.at].key not in done]
            cut += sum(reply.cut for reply in new)
            if new:
                keep(
                    [Response(instruction=instructions[reply.at].key, text=reply.text, tokens=reply.tokens, cut=reply.cut) for reply in new]
                )

        for group in plan:
            members = [(fitting[i], instructions[fitting[i]].key) for i in group.positions]
            if all(key in done for _, key in members):
                continue
            speaker.reply(
                [Prompt(at=i, ids=prompts[i], seed=seeds.get(key, 0)) for i, key in members],
                at_once=group.rows,
                max_new_tokens=settings.max_new_tokens,
                temperature=temperature,
                keep=keep_replies,
                should_stop=self.should_stop,
            )
        if cut:
            logger.info("%d responses were cut off at %d new tokens, or where the context ends", cut, settings.max_new_tokens)

    @property
    def speaker(self) -> Speaker:
        """The loaded model, ready to answer."""
        if self._speaker is None:
            with memory_errors(f"the student {self.config.student.model}. Choose a smaller one, or a device with more memory."):
                self._speaker = load_speaker(self.config, self.start)
        return self._speaker


def _free_memory() -> None:
    """Let go of what a tuning that ran out of memory left on the card."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _keep_refused(
    instructions: Sequence[Instruction],
    prompts: Sequence[Sequence[int]],
    *,
    context: int,
    done: frozenset[str],
    keep: Callable[[list[Response]], None],
) -> list[int]:
    """Keep a failure for each prompt that leaves no room for an answer; gives the positions of those that do."""
    fits = [len(prompt) < context for prompt in prompts]
    refused = [
        _refuse(item, len(prompt), context)
        for item, prompt, fit in zip(instructions, prompts, fits, strict=True)
        if not fit and item.key not in done
    ]
    if refused:
        keep(refused)
    return [i for i, fit in enumerate(fits) if fit]


def _refuse(instruction: Instruction, tokens: int, context: int) -> Response:
    failure = f"The prompt is {tokens} tokens long; the student reads at most {context - 1} and needs one to answer."
    return Response(instruction=instruction.key, text="", failure=failure)
