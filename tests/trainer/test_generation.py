import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rouge_score import rouge_scorer

from tests.fakes import FakeGenerator
from trainer.config import LoopConfig
from trainer.generation import Outcome, generate, parents_for, similarity_fate, text_fate
from trainer.pools import cache_pool, train_pool, wanted
from trainer.records import Candidate, Completion, Fate, Instruction, Label, Origin, Verdict
from trainer.similarity import SimilarityIndex

CONFIG = LoopConfig(new_per_iteration=20)
PARENT = Instruction(key="seed-000000", text="Name the five largest lakes of the world")


def pool(size: int = 12) -> list[Instruction]:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
    return [Instruction(key=f"seed-{n:06d}", text=f"{words[n % 12]} {n}", kind=words[n % 12]) for n in range(size)]


def verdicts(instructions: Sequence[Instruction]) -> dict[str, Verdict]:
    labels = [Label.HARD, Label.EASY, Label.QUARANTINED]
    return {i.key: Verdict(instruction=i.key, label=labels[n % 3]) for n, i in enumerate(instructions)}


def run(
    generator: FakeGenerator,
    *,
    config: LoopConfig = CONFIG,
    seed: int = 1,
    earlier: Sequence[Candidate] = (),
    known: SimilarityIndex | None = None,
) -> tuple[Outcome, list[Candidate]]:
    kept: list[Candidate] = []

    async def keep(candidate: Candidate, accepted: Instruction | None) -> None:
        assert (accepted is not None) == (candidate.fate is Fate.ACCEPTED)
        kept.append(candidate)

    known = known or SimilarityIndex()
    known.extend((i.key, i.text) for i in pool())
    parents = parents_for(pool(), verdicts(pool()), config=config)
    outcome = asyncio.run(
        generate(parents, generator=generator, known=known, config=config, seed=seed, iteration=1, keep=keep, earlier=earlier)
    )
    return outcome, kept


class SlowGenerator(FakeGenerator):
    """Answers in an order of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    async def create(self, parent: Instruction, *, easy: bool, sample: int) -> Completion | None:
        for _ in range(self._random.randrange(20)):
            await asyncio.sleep(0)
        return await super().create(parent, easy=easy, sample=sample)


def test_hard_come_from_hard_parents_and_easy_from_easy_ones() -> None:
    generator = FakeGenerator()
    outcome, _ = run(generator)
    labels = {key: verdict.label for key, verdict in verdicts(pool()).items()}
    assert {labels[parent] for parent, easy, _ in generator.asked if easy} == {Label.EASY}
    assert {labels[parent] for parent, easy, _ in generator.asked if not easy} == {Label.HARD}
    assert [i.origin for i in outcome.accepted].count(Origin.HARD) == 10
    assert len(outcome.accepted) == 20


@pytest.mark.parametrize(("ratio", "hard", "easy"), [("1:0", 21, 0), ("2:1", 14, 7), ("1:1", 11, 10), ("1:2", 7, 14), ("0:1", 0, 21)])
def test_the_ratio_says_how_many_of_each(ratio: str, hard: int, easy: int) -> None:
    assert wanted(LoopConfig(new_per_iteration=21, ratio=ratio)) == {Origin.HARD: hard, Origin.EASY: easy}


def test_random_parents_use_both_operators_on_the_whole_pool_and_uniform_only_the_hard_one() -> None:
    everything = parents_for(pool(), {}, config=replace(CONFIG, parents="random"))
    assert everything == {Origin.HARD: pool(), Origin.EASY: pool()}
    assert parents_for(pool(), {}, config=replace(CONFIG, parents="uniform")) == {Origin.HARD: pool()}


def test_the_same_seed_gives_the_same_pools_in_whatever_order_replies_come() -> None:
    texts = [[(i.key, i.text) for i in run(SlowGenerator(order))[0].accepted] for order in range(5)]
    assert all(other == texts[0] for other in texts)
    assert [(i.key, i.text) for i in run(SlowGenerator(0), seed=2)[0].accepted] != texts[0]


def test_accepted_and_rejected_are_all_candidates_and_no_accepted_pair_is_too_similar() -> None:
    outcome, kept = run(
        FakeGenerator(lambda parent, easy, sample: f"{parent.text} {sample % 5}" if sample % 3 else f"{sample} only {sample // 7}")
    )
    assert len(kept) == len(outcome.accepted) + sum(1 for c in kept if c.fate is not Fate.ACCEPTED)
    assert any(c.fate is Fate.TOO_SIMILAR and c.nearest and c.similarity is not None and c.similarity >= 0.7 for c in kept)
    oracle = rouge_scorer.RougeScorer(["rougeL"])
    for place, instruction in enumerate(outcome.accepted):
        for other in [*pool(), *outcome.accepted[:place]]:
            assert oracle.score(other.text, instruction.text)["rougeL"].fmeasure < 0.7


def test_an_accepted_candidate_names_no_near_copy_since_there_is_none() -> None:
    _, kept = run(FakeGenerator())
    assert {(c.nearest, c.similarity) for c in kept if c.fate is Fate.ACCEPTED} == {("", None)}


def test_a_generator_that_repeats_itself_ends_at_the_cap_and_says_why() -> None:
    generator = FakeGenerator(lambda parent, easy, sample: "always the very same words")
    outcome, kept = run(generator, config=replace(CONFIG, attempts_per_new=3))
    assert len(outcome.accepted) == 1
    assert len(kept) == len(generator.asked) == 60
    assert "too_similar" in outcome.shortfall[Origin.HARD]


def test_no_more_is_asked_for_than_is_missing() -> None:
    generator = FakeGenerator()
    run(generator)
    assert len(generator.asked) == 20


def test_without_hard_parents_the_stage_makes_easy_ones_and_says_so() -> None:
    async def keep(candidate: Candidate, accepted: Instruction | None) -> None:
        return None

    parents = {Origin.HARD: [], Origin.EASY: pool()}
    work = generate(parents, generator=FakeGenerator(), known=SimilarityIndex(), config=CONFIG, seed=1, iteration=1, keep=keep)
    outcome = asyncio.run(work)
    assert {i.origin for i in outcome.accepted} == {Origin.EASY}
    assert "no hard parent" in outcome.shortfall[Origin.HARD]


def test_candidates_kept_before_a_crash_are_not_asked_for_again() -> None:
    whole, kept = run(FakeGenerator())
    generator = FakeGenerator()
    resumed, _ = run(generator, earlier=kept[:13])
    assert [(i.key, i.text) for i in resumed.accepted] == [(i.key, i.text) for i in whole.accepted]
    assert len(generator.asked) == 7


@pytest.mark.parametrize("was", [Fate.ACCEPTED, Fate.TOO_SIMILAR])
def test_what_was_decided_before_a_crash_stays_though_it_would_be_decided_otherwise_now(was: Fate) -> None:
    _, before = run(FakeGenerator())
    first = before[0]
    other_text = "new words of its own" if was is Fate.TOO_SIMILAR else pool()[0].text
    outcome, after = run(FakeGenerator(), earlier=[replace(first, fate=was, text=other_text), *before[1:5]])
    assert after[0].fate is was
    assert (first.key in [i.key for i in outcome.accepted]) == (was is Fate.ACCEPTED)
    assert len(outcome.accepted) == sum(c.fate is Fate.ACCEPTED for c in after) == 20


def test_an_ask_without_an_answer_is_kept_as_such() -> None:
    outcome, kept = run(FakeGenerator(lambda parent, easy, sample: None if sample % 2 else f"fresh {sample} thing {sample // 3}"))
    assert {c.fate for c in kept} == {Fate.NO_REPLY, Fate.ACCEPTED}
    assert len(outcome.accepted) == 20


def test_the_paper_keeps_what_is_below_the_limit_and_the_code_what_is_at_most_the_limit() -> None:
    assert similarity_fate(0.7, config=CONFIG) is Fate.TOO_SIMILAR
    assert similarity_fate(0.7, config=replace(CONFIG, similarity_rule="at_most")) is Fate.ACCEPTED
    assert similarity_fate(0.69, config=CONFIG) is Fate.ACCEPTED


@pytest.mark.parametrize(
    ("text", "paper", "code"),
    [
        ("", Fate.EMPTY, Fate.EMPTY),
        ("?!", Fate.EMPTY, Fate.EMPTY),
        ("Write #Given Instruction#", Fate.MARKER_WORDS, Fate.MARKER_WORDS),
        ("Name three colours", Fate.ACCEPTED, Fate.TOO_SHORT),
        ("Follow this instruction to the letter", Fate.ACCEPTED, Fate.MARKER_WORDS),
        ("- Name the four seasons", Fate.ACCEPTED, Fate.BAD_START),
        ("Écris un poème en français", Fate.ACCEPTED, Fate.BAD_START),
        ("Name the four seasons of the year", Fate.ACCEPTED, Fate.ACCEPTED),
    ],
)
def test_the_rules_of_the_paper_and_of_the_code(text: str, paper: Fate, code: Fate) -> None:
    assert text_fate(text, parent=PARENT, config=CONFIG) is paper
    assert text_fate(text, parent=PARENT, config=replace(CONFIG, candidate_rules="code")) is code


def test_the_train_pool_is_replaced_and_the_cache_pool_extended() -> None:
    everything = [Instruction(key=f"k{n}", text=str(n), iteration=n // 2) for n in range(6)]
    keys = [[i.key for i in train_pool(everything, k, config=CONFIG)] for k in range(3)]
    assert keys == [["k0", "k1"], ["k2", "k3"], ["k4", "k5"]]
    assert [i.key for i in train_pool(everything, 1, config=replace(CONFIG, train_pool="accumulate"))] == ["k0", "k1", "k2", "k3"]
    assert [i.key for i in cache_pool(everything, 2)] == ["k0", "k1", "k2", "k3"]
