"""START HERE: adversarial distillation as the Lion paper tells it (arXiv 2305.12870).

    iteration 0     imitate the teacher on the seed pool
    iteration k     discriminate: the referee scores teacher and student on the whole cache pool, in both orders
                    generate:     new hard and easy instructions from hard and easy parents
                    imitate:      tune the student on the teacher's responses to the new instructions
    after each      evaluate the checkpoint on the benchmarks

Departures from the paper, each a setting or named here:
1. Every answer is kept and none is paid for twice; the teacher's responses are reused when the cache pool is judged again.
2. Replies that cannot be read are asked for again, then quarantined: they are never averaged in, never silently easy.
3. Hard and easy instructions of one iteration are compared with each other too (the authors' code runs them apart).
4. Attempts at new instructions are capped; the paper asks until it has enough.
5. No logit_bias against the end-of-text token, which only some servers know.

A stage is made of steps, and each step belongs to one queue: `teacher` calls endpoints, `gpu` needs the student. A step is a
function of the book (what is done, where results go) and the roles; run again after a failure, it also tries again what is
quarantined. The command line runs the steps in a row, the web one job at a time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from trainer.batching import for_each
from trainer.benchmarks import get_benchmark
from trainer.book import Book
from trainer.checkpoints import MEND_CHECKPOINT
from trainer.config import RunConfig, referees_of
from trainer.contamination import HeldOut
from trainer.discrimination import Case, asks_of, judge_all
from trainer.diversity import measure, traits_of
from trainer.errors import ConfigError, DamagedCheckpoint, TooManyQuarantined
from trainer.generation import Outcome, generate, parents_for
from trainer.plan import Planned, Step, plan
from trainer.pools import judged_pool
from trainer.records import BenchmarkAnswer, BenchmarkItem, Example, Instruction, Judgement, Label, Remark, TuningNews, Verdict
from trainer.roles import Generator, Referee, Student, Teacher
from trainer.similarity import SimilarityIndex

logger = logging.getLogger(__name__)


class Roles(Protocol):
    """The roles that answer through endpoints."""

    @property
    def teacher(self) -> Teacher: ...

    @property
    def referee(self) -> Referee: ...

    @property
    def generator(self) -> Generator: ...


class Desk(Protocol):
    """What a step works with beside the book: the roles, the student, and a way to run asynchronous work that can be cancelled."""

    def roles(self) -> AbstractAsyncContextManager[Roles]: ...

    def student(self, *, iteration: int, start: Path | None) -> Student: ...

    @property
    def use_saved(self) -> bool:
        """Whether a person wants the last save of a stopped tuning as the checkpoint."""
        ...

    def held_out(self) -> HeldOut:
        """The items of the run's benchmarks, which no new instruction may overlap with."""
        ...

    def run(self, work: Coroutine[Any, Any, None]) -> None: ...

    def note(self, text: str) -> None:
        """Something a person should know about how the step ended."""
        ...


def distil(book: Book, desk: Desk, config: RunConfig, *, before: Callable[[Planned], None] = lambda planned: None) -> None:
    """The whole loop in a row. Steps that are done find nothing to do, so it may be stopped and started at will."""
    for planned in plan(config):
        before(planned)
        run_step(planned, book, desk, config)


def run_step(planned: Planned, book: Book, desk: Desk, config: RunConfig) -> None:
    """One step of one iteration, from what the book says is still missing."""
    WORK[planned.step](book, desk, config, planned.iteration)


def check_student(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """Before the teacher is asked anything: the student loads, fits and has room, or the run ends here at no cost."""
    preflight = desk.student(iteration=iteration, start=None).check()
    book.keep_news(iteration, preflight)
    for problem in preflight.problems:
        desk.note(problem)


def answer_train_pool(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """Imitation, first half: the teacher answers the train pool."""
    if book.checkpoint(iteration) is not None:
        return  # the student is tuned: an answer would come too late
    answered = {key for key, response in book.teacher_responses().items() if not response.failure}
    todo = [i for i in book.train_pool(iteration) if i.key not in answered]

    async def work() -> None:
        async with desk.roles() as roles:

            async def answer(instruction: Instruction) -> None:
                await book.keep_teacher_response(await roles.teacher.respond(instruction))

            await for_each(todo, answer, at_once=_at_once(config, "teacher"))

    if todo:
        desk.run(work())


def tune(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """Imitation, second half: the student is tuned on the teacher's responses; what the teacher could not answer is left out."""
    if book.checkpoint(iteration) is None:
        _imitate(book, desk, config, iteration, use_saved=desk.use_saved)


def _imitate(book: Book, desk: Desk, config: RunConfig, iteration: int, *, use_saved: bool = False) -> None:
    """Tune the student of an iteration and keep its checkpoint, in the place of a damaged one where that is there."""
    responses = book.teacher_responses()
    pool = book.train_pool(iteration)
    usable = {key: response.text for key, response in responses.items() if not response.failure}
    examples = [Example(instruction=i, response=usable[i.key]) for i in pool if i.key in usable]
    if not examples:
        raise ConfigError(f"The train pool of iteration {iteration} has no answered instruction, so there is nothing to imitate.")
    if len(examples) < len(pool):
        desk.note(f"{len(pool) - len(examples)} of {len(pool)} instructions have no usable teacher response and are left out.")

    def keep(news: TuningNews) -> None:
        if isinstance(news, Remark):
            desk.note(news.text)
        else:
            book.keep_news(iteration, news)

    def tune_from(start: Path | None) -> None:
        student = desk.student(iteration=iteration, start=start)
        book.keep_checkpoint(iteration, student.imitate(examples, iteration=iteration, tell=keep, use_saved=use_saved))

    if iteration and config.loop.student_start == "last":
        _from_checkpoint(book, desk, config, iteration - 1, tune_from)
    else:
        tune_from(None)


def answer_cache_pool(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """Discrimination, first half: the student of the iteration before answers the cache pool."""
    pool = judged_pool(book.cache_pool(iteration), iteration, config=config)
    done = book.student_responses(iteration)
    if any(i.key not in done for i in pool):
        _from_checkpoint(book, desk, config, iteration - 1, partial(_respond, book, desk, iteration, pool))
        responses, longest = book.student_responses(iteration).values(), config.respond.max_new_tokens
        if cut := sum(response.cut for response in responses):
            where = f"at respond.max_new_tokens, {longest:,}, or where its context ends"
            desk.note(f"{cut} of {len(responses)} responses of the student were cut {where}.")


def _respond(book: Book, desk: Desk, iteration: int, pool: Sequence[Instruction], start: Path) -> None:
    done = frozenset(book.student_responses(iteration))
    student = desk.student(iteration=iteration, start=start)
    student.respond(pool, done=done, keep=lambda responses: book.keep_student_responses(iteration, responses))


def judge_cache_pool(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """Discrimination, second half: the referee scores both responses, in both orders, and d >= tau is hard.

    Raises TooManyQuarantined, with every verdict kept, where more could not be scored than the config lets pass.
    """
    pool = judged_pool(book.cache_pool(iteration), iteration, config=config)
    teacher, student = book.teacher_responses(), book.student_responses(iteration)
    final = bool(book.candidates(iteration))  # new instructions were made by these verdicts: they stay
    before = book.verdicts(iteration)
    judged = {key for key, verdict in before.items() if final or verdict.left_out or verdict.label is not Label.QUARANTINED}
    tries = {key: verdict.tries for key, verdict in before.items()}
    cases = [Case(i, teacher.get(i.key), student.get(i.key), tries.get(i.key, 0)) for i in pool if i.key not in judged]
    tau = book.tau(iteration)
    failed = 0

    async def keep(verdict: Verdict, judgements: Sequence[Judgement]) -> None:
        nonlocal failed
        await book.keep_verdict(iteration, verdict, judgements)
        failed += verdict.label is Label.QUARANTINED
        if not final and failed > config.discrimination.most_quarantined * len(pool):
            raise TooManyQuarantined(f"{failed:,} of {len(pool):,} could not be scored already, so the rest was not asked for.")

    async def work() -> None:
        async with desk.roles() as roles:
            await judge_all(
                cases,
                referee=roles.referee,
                asks=asks_of(config),
                weights=referees_of(config),
                tau=tau,
                keep=keep,
                at_once=_at_once(config, "referee"),
            )

    if cases:
        try:
            desk.run(work())
        except TooManyQuarantined:
            logger.info("iteration %d: too much is quarantined already, the rest is not judged", iteration)
    if not final:
        _refuse_quarantined(book.verdicts(iteration), of=len(pool), most=config.discrimination.most_quarantined)


def _refuse_quarantined(verdicts: Mapping[str, Verdict], *, of: int, most: float) -> None:
    """Ask a person where too much is quarantined that nobody has left out yet."""
    waiting = [v for v in verdicts.values() if v.label is Label.QUARANTINED and not v.left_out]
    if len(waiting) > most * of:
        rest = f"The other {of - len(verdicts):,} were not judged any more. " if len(verdicts) < of else ""
        raise TooManyQuarantined(
            f"{len(waiting):,} of {len(verdicts):,} judged instructions could not be scored, more than the {most:.0%} that may pass. {rest}"
            f"{' '.join(_commonest_reason(waiting))} "
            "Mend what keeps them from being scored and resume, which tries them again; or, on the run's Referee page, score them by hand "
            "or leave them out, then resume. The share is discrimination.most_quarantined of a new run."
        )


def write_new_instructions(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """Generation: hard parents give hard instructions, easy parents rarer ones; near-copies of known ones are rejected."""
    pool = book.cache_pool(iteration)
    earlier = book.candidates(iteration)
    verdicts = book.verdicts(iteration)
    parents = parents_for(pool, verdicts, config=config.loop)
    known = SimilarityIndex()
    known.extend((i.key, i.prompt) for i in pool)
    held_out = desk.held_out() if config.loop.decontaminate else None
    outcome = Outcome()

    async def work() -> None:
        nonlocal outcome
        async with desk.roles() as roles:
            outcome = await generate(
                parents,
                generator=roles.generator,
                known=known,
                config=config.loop,
                seed=config.seed,
                iteration=iteration,
                earlier=earlier,
                held_out=held_out,
                keep=lambda candidate, accepted: book.keep_candidate(iteration, candidate, accepted),
            )

    desk.run(work())
    for text in outcome.shortfall.values():
        desk.note(text)
    if not outcome.accepted:
        lines = [f"No new instruction was accepted in iteration {iteration}.", *outcome.shortfall.values()]
        raise ConfigError(" ".join(lines if any(parents.values()) else [*lines, *_why_quarantined(verdicts)]))
    _measure_diversity(book, desk, config, iteration)


def _measure_diversity(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """How varied the new instructions are, beside the seeds, told where that collapses; before the first ones the seeds themselves."""
    seeds, pool = book.cache_pool(1), book.cache_pool(iteration + 1)
    told = book.traits()
    fresh = {i.key: traits_of(i.text) for i in pool if i.key not in told}
    traits = {**told, **fresh}
    for number in (0, iteration) if iteration == 1 else (iteration,):
        made = [i for i in pool if i.iteration == number]
        diversity = measure(made, seeds, traits=lambda i: traits[i.key], seed=config.seed, iteration=number)
        book.keep_diversity(number, diversity, fresh)
        fresh = {}
    for alarm in diversity.alarms:
        desk.note(f"The new instructions are less varied than the seeds. {alarm}")


def _why_quarantined(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """How many instructions are quarantined, the commonest reason, and what to do: parents are missing where nothing could be judged."""
    quarantined = [verdict for verdict in verdicts.values() if verdict.label is Label.QUARANTINED]
    if quarantined:
        yield f"{len(quarantined):,} of {len(verdicts):,} judged instructions are quarantined."
        yield from _commonest_reason(quarantined)
        yield "Launch a new run with what would mend that: longer replies, more asks, or another endpoint."


def _commonest_reason(quarantined: Sequence[Verdict]) -> Iterator[str]:
    for reason, count in Counter(verdict.reason for verdict in quarantined).most_common(1):
        yield f"{count:,} of them with this reason: {reason}"


def evaluate(book: Book, desk: Desk, config: RunConfig, iteration: int) -> None:
    """The checkpoint answers each benchmark's items, greedily; every answer is kept, then the scores."""
    for name in config.evaluation.benchmarks:
        done = book.answered_items(iteration, name)
        if any(item.key not in done for item in get_benchmark(name).items()):
            _from_checkpoint(book, desk, config, iteration, partial(_answer, book, desk, iteration, name))
        book.keep_scores(iteration, name)


def _answer(book: Book, desk: Desk, iteration: int, name: str, start: Path) -> None:
    items, done = get_benchmark(name).items(), book.answered_items(iteration, name)
    desk.student(iteration=iteration, start=start).answer(items, done=done, keep=partial(_keep_answers, book, iteration, name))


def _keep_answers(book: Book, iteration: int, name: str, replies: list[tuple[BenchmarkItem, str]]) -> None:
    """Mark the replies, and keep them."""
    correct = get_benchmark(name).correct
    answers = [
        BenchmarkAnswer(item=item.key, task=item.task, prompt=item.prompt, gold=item.gold, reply=reply, correct=correct(item, reply))
        for item, reply in replies
    ]
    book.keep_answers(iteration, name, answers)


WORK: dict[Step, Callable[[Book, Desk, RunConfig, int], None]] = {
    Step.PREFLIGHT: check_student,
    Step.TEACHER_RESPONSES: answer_train_pool,
    Step.TUNING: tune,
    Step.STUDENT_RESPONSES: answer_cache_pool,
    Step.JUDGEMENTS: judge_cache_pool,
    Step.CANDIDATES: write_new_instructions,
    Step.BENCHMARKS: evaluate,
}


def _from_checkpoint(book: Book, desk: Desk, config: RunConfig, iteration: int, work: Callable[[Path], None]) -> None:
    """Do what needs the checkpoint of an iteration. A damaged one is tuned again first, as it was: by the same seed from the one before."""
    path = _checkpoint(book, iteration)
    try:
        work(path)
    except DamagedCheckpoint as error:
        if f"{path} " not in str(error) and f"{path}/" not in str(error):
            raise  # of another one, which this one is on
        told = str(error).removesuffix(MEND_CHECKPOINT).strip()
        _imitate(book, desk, config, iteration)
        desk.note(f"{told} It was tuned again in this step, from what it started from.")
        work(_checkpoint(book, iteration))


def _checkpoint(book: Book, iteration: int) -> Path:
    path = book.checkpoint(iteration)
    if path is None:
        raise ConfigError(f"The checkpoint of iteration {iteration} is not there. Run its imitation again.")
    return path


def _at_once(config: RunConfig, role: str) -> int:
    """Items under way at once: two for every call the endpoint takes, so that writing never keeps a slot empty."""
    settings = getattr(config, role)
    names = referees_of(config) if role == "referee" else [settings.endpoint]
    return BATCHED_AT_ONCE if settings.batch else 2 * max(config.endpoints[name].max_at_once for name in names)


BATCHED_AT_ONCE = 20_000
"""Items that wait for a batch at once: as many as one batch takes."""
