"""Generation: new hard and easy instructions from random parents, kept only where they differ enough from all known.

The same seed gives the same pools, whatever the order in which replies come: attempt n of an origin has a parent and a sample
number of its own, drawn from the seed, and attempts are decided in order. Each wave asks for exactly as many attempts as are
still missing, so nothing is paid for that is not needed.
"""

from __future__ import annotations

import asyncio
import string
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property

from trainer.candidate_rules import strict_fate
from trainer.config import LoopConfig
from trainer.contamination import HeldOut
from trainer.parsing import parse_instruction
from trainer.pools import wanted
from trainer.prompts import MARKER_WORDS
from trainer.records import Candidate, Completion, Fate, Instruction, Label, Origin, Verdict
from trainer.roles import Generator
from trainer.seeds import derive_seed, stream
from trainer.similarity import SimilarityIndex, tokenize

CODE_LEAST_WORDS = 4
NO_PARENT = "There is no {origin} parent to start from: another tau or ratio, or reviews that overrule the referee, would give some."


@dataclass
class Outcome:
    """What a generation stage made, and for each origin why it fell short, if it did."""

    accepted: list[Instruction] = field(default_factory=list)
    shortfall: dict[Origin, str] = field(default_factory=dict)


def parents_for(pool: Sequence[Instruction], verdicts: Mapping[str, Verdict], *, config: LoopConfig) -> dict[Origin, list[Instruction]]:
    """The parents each origin draws from, in the order of the pool: by verdict, or any (METHOD 1 and its ablations)."""
    if config.parents != "by_verdict":
        return {origin: list(pool) for origin in wanted(config)}

    def labelled(label: Label) -> list[Instruction]:
        return [i for i in pool if i.key in verdicts and verdicts[i.key].label is label]

    return {Origin.HARD: labelled(Label.HARD), Origin.EASY: labelled(Label.EASY)}


async def generate(
    parents: Mapping[Origin, Sequence[Instruction]],
    *,
    generator: Generator,
    known: SimilarityIndex,
    config: LoopConfig,
    seed: int,
    iteration: int,
    keep: Callable[[Candidate, Instruction | None], Awaitable[None]],
    held_out: HeldOut | None = None,
    earlier: Sequence[Candidate] = (),
) -> Outcome:
    """Make the new instructions of an iteration; `known` grows by what is accepted.

    held_out: benchmark items that no new instruction may overlap with.
    earlier: candidates kept before a crash; they are taken as they are and not asked for again.
    """
    stage = _Stage(
        parents=parents, generator=generator, seed=seed, iteration=iteration, earlier={(c.origin, c.attempt): c for c in earlier}
    )
    outcome = Outcome()
    missing = {origin: count for origin, count in wanted(config).items() if count}
    caps = {origin: round(count * config.attempts_per_new) for origin, count in missing.items()}
    attempts: Counter[Origin] = Counter()
    fates: Counter[tuple[Origin, Fate]] = Counter()
    for origin in [origin for origin in missing if not parents.get(origin)]:
        outcome.shortfall[origin] = NO_PARENT.format(origin=origin)
        del missing[origin]
    while missing:
        wave = [(attempts[o] + n, o) for o, count in missing.items() for n in range(min(count, caps[o] - attempts[o]))]
        async for candidate in stage.ask(sorted(wave, key=lambda slot: (slot[0], slot[1] != Origin.HARD))):
            decided = candidate
            if (candidate.origin, candidate.attempt) not in stage.earlier:
                parent = stage.parent(candidate.origin, candidate.attempt)
                decided = _decide(candidate, parent, known=known, held_out=held_out, config=config)
            instruction = _instruction(decided, iteration=iteration, kinds=stage.kinds)
            await keep(decided, instruction)
            attempts[decided.origin] += 1
            fates[decided.origin, decided.fate] += 1
            if instruction is not None:
                known.add(instruction.key, instruction.prompt)
                outcome.accepted.append(instruction)
                missing[decided.origin] -= 1
        for origin in [o for o, count in missing.items() if count == 0 or attempts[o] >= caps[o]]:
            if missing.pop(origin):
                outcome.shortfall[origin] = _why(origin, attempts[origin], fates)
    return outcome


def _why(origin: Origin, attempts: int, fates: Mapping[tuple[Origin, Fate], int]) -> str:
    counted = ", ".join(f"{fate} {n}" for (of, fate), n in sorted(fates.items()) if of == origin)
    return f"Ended after {attempts} attempts at {origin} instructions, the most allowed: {counted}."


@dataclass
class _Stage:
    """Asks for candidates and gives them back in the order asked."""

    parents: Mapping[Origin, Sequence[Instruction]]
    generator: Generator
    seed: int
    iteration: int
    earlier: Mapping[tuple[Origin, int], Candidate]

    def parent(self, origin: Origin, attempt: int) -> Instruction:
        return stream(self.seed, "parent", self.iteration, origin, attempt).choice(self.parents[origin])

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(parent.kind for parents in self.parents.values() for parent in parents)

    async def ask(self, slots: Sequence[tuple[int, Origin]]) -> AsyncIterator[Candidate]:
        tasks = [asyncio.create_task(self._candidate(origin, attempt)) for attempt, origin in slots]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _candidate(self, origin: Origin, attempt: int) -> Candidate:
        if (origin, attempt) in self.earlier:
            return self.earlier[origin, attempt]
        parent = self.parent(origin, attempt)
        sample = derive_seed(self.seed, "sample", self.iteration, origin, attempt)
        completion = await self.generator.create(parent, easy=origin is Origin.EASY, sample=sample)
        return Candidate(
            key=f"i{self.iteration}-{origin}-{attempt:06d}",
            origin=origin,
            attempt=attempt,
            parent=parent.key,
            text=parse_instruction(completion.text) if completion else "",
            fate=_first_fate(completion),
            completion=completion.key if completion else "",
            prompt=self.generator.prompt,
        )


def _first_fate(completion: Completion | None) -> Fate:
    if completion is None:
        return Fate.NO_REPLY
    return Fate.ACCEPTED if completion.good else Fate.CUT_OFF


def _decide(
    candidate: Candidate, parent: Instruction, *, known: SimilarityIndex, held_out: HeldOut | None, config: LoopConfig
) -> Candidate:
    """The candidate with its fate, and what it is too like; of what is less like all known than the limit, that is not looked for."""
    fate = candidate.fate if candidate.fate in (Fate.NO_REPLY, Fate.CUT_OFF) else text_fate(candidate.text, parent=parent, config=config)
    nearest, similarity, overlap = "", None, ""
    if fate is Fate.ACCEPTED and held_out and (overlap := held_out.overlap(candidate.text)):
        fate = Fate.CONTAMINATED
    if fate is Fate.ACCEPTED and (found := known.nearest(candidate.text, at_least=config.similarity)) is not None:
        nearest, similarity = found
        fate = similarity_fate(similarity, config=config)
    return replace(candidate, fate=fate, nearest=nearest, similarity=similarity, overlap=overlap)


def _instruction(candidate: Candidate, *, iteration: int, kinds: Set[str]) -> Instruction | None:
    """What an accepted candidate becomes."""
    if candidate.fate is not Fate.ACCEPTED:
        return None
    return Instruction(
        key=candidate.key,
        text=candidate.text,
        origin=candidate.origin,
        iteration=iteration,
        parent=candidate.parent,
        kind=named_kind(candidate.text, kinds),
    )


def text_fate(text: str, *, parent: Instruction, config: LoopConfig) -> Fate:
    """Whether a text may be an instruction at all, by the rules of the paper, of the authors' code (METHOD 1, item 3), or strictly."""
    if not tokenize(text):
        return Fate.EMPTY
    lowered = text.casefold()
    if any(marker in lowered for marker in MARKER_WORDS):
        return Fate.MARKER_WORDS
    if config.candidate_rules == "strict":
        return strict_fate(text, parent=parent.prompt)
    if config.candidate_rules == "code":
        if len(text.split()) < CODE_LEAST_WORDS:
            return Fate.TOO_SHORT
        if "instruction" in lowered:
            return Fate.MARKER_WORDS
        if text[0] in string.punctuation or not text[0].isascii():
            return Fate.BAD_START
    return Fate.ACCEPTED


def similarity_fate(similarity: float, *, config: LoopConfig) -> Fate:
    """The paper keeps what is below the limit, the authors' code what is at most the limit."""
    kept = similarity < config.similarity if config.similarity_rule == "below" else similarity <= config.similarity
    return Fate.ACCEPTED if kept else Fate.TOO_SIMILAR


def named_kind(text: str, kinds: Set[str]) -> str:
    """The kind a new instruction names before its first colon, where it is one of the parents' kinds; else none."""
    name = text.partition(":")[0].strip()
    return name if name in kinds else ""
