import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeDesk, FakeGenerator, FakeReferee, FakeStudent, FakeTeacher
from trainer.config import DiscriminationConfig, EvaluationConfig, LoopConfig, RunConfig
from trainer.errors import ConfigError, TooManyQuarantined
from trainer.folder import FolderBook, locked
from trainer.jsonl import drop_unfinished_line, read_jsonl
from trainer.loop import distil, run_step
from trainer.plan import Planned, Stage, Step, plan
from trainer.records import Instruction, Label, Response
from trainer.summary import summarise

CONFIG = RunConfig(loop=LoopConfig(iterations=2, new_per_iteration=6))


def seeds(size: int = 10) -> list[Instruction]:
    return [Instruction(key=f"seed-{n:06d}", text=f"seed{n} number{n}") for n in range(size)]


def book_in(folder: Path, config: RunConfig = CONFIG) -> FolderBook:
    return FolderBook(folder, config, seeds())


class Interrupted(RuntimeError):
    """Stands for a crash in the middle of a step."""


class CrashingDesk(FakeDesk):
    """Dies after some asks of the teacher or the referee."""

    def crash_after(self, asks: int) -> None:
        self.left = asks

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        for role, name in ((self.teacher, "respond"), (self.referee, "judge")):
            setattr(role, name, self._counting(getattr(type(role), name).__get__(role)))
        super().run(work)

    def _counting(self, ask: Any) -> Any:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Interrupted
            return await ask(*args, **kwargs)

        return counted


def everything(folder: Path) -> dict[str, Any]:
    """All records of a run, whatever the order in which they were written."""
    names = ("cache_pool", "train_pool", "verdicts", "judgements", "candidates", "teacher_responses", "student_responses")
    paths = [path for name in names for path in folder.glob(f"iteration-*/{name}.jsonl")]
    return {str(path.relative_to(folder)): sorted(json.dumps(record) for record in read_jsonl(path)) for path in paths}


def test_the_plan_is_the_papers_loop() -> None:
    config = replace(CONFIG, loop=replace(CONFIG.loop, iterations=1), evaluation=EvaluationConfig(benchmarks=("demo_skills",)))
    assert list(plan(config)) == [
        Planned(0, Stage.IMITATION, Step.PREFLIGHT),
        Planned(0, Stage.IMITATION, Step.TEACHER_RESPONSES),
        Planned(0, Stage.IMITATION, Step.TUNING),
        Planned(0, Stage.EVALUATION, Step.BENCHMARKS),
        Planned(1, Stage.DISCRIMINATION, Step.STUDENT_RESPONSES),
        Planned(1, Stage.DISCRIMINATION, Step.JUDGEMENTS),
        Planned(1, Stage.GENERATION, Step.CANDIDATES),
        Planned(1, Stage.IMITATION, Step.TEACHER_RESPONSES),
        Planned(1, Stage.IMITATION, Step.TUNING),
        Planned(1, Stage.EVALUATION, Step.BENCHMARKS),
    ]


def test_a_run_leaves_pools_that_add_up(tmp_path: Path) -> None:
    book = book_in(tmp_path)
    distil(book, FakeDesk(tmp_path), CONFIG)
    rows = summarise(book, from_store=0, wall_s=0)["iterations"]
    assert [row["train_pool"] for row in rows] == [10, 6, 6]
    assert [row["cache_pool"] for row in rows] == [10, 10, 16]
    assert all(row["judged"] == row["hard"] + row["easy"] + row["quarantined"] for row in rows)
    assert [row["judged"] for row in rows] == [0, 10, 16]
    assert all(row["loss"] == {"first": 1.0, "last": 0.5} for row in rows)


def test_the_teacher_is_asked_once_for_each_instruction(tmp_path: Path) -> None:
    desk = FakeDesk(tmp_path)
    distil(book_in(tmp_path), desk, CONFIG)
    assert len(desk.teacher.asked) == len(set(desk.teacher.asked)) == 10 + 6 + 6


def test_the_whole_cache_pool_is_judged_again_each_iteration(tmp_path: Path) -> None:
    desk = FakeDesk(tmp_path)
    distil(book_in(tmp_path), desk, CONFIG)
    assert len(desk.referee.asked) == 2 * (10 + 16)


@pytest.mark.parametrize("asks", [1, 7, 13, 28, 40, 61])
def test_a_run_that_was_cut_off_goes_on_without_asking_twice(tmp_path: Path, asks: int) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    distil(book_in(undisturbed), FakeDesk(undisturbed), CONFIG)
    crashing = CrashingDesk(disturbed)
    crashing.crash_after(asks)
    with pytest.raises(Interrupted), closing(book_in(disturbed)) as book:
        distil(book, crashing, CONFIG)
    kept_before = {r["instruction"] for path in disturbed.glob("iteration-*/teacher_responses.jsonl") for r in read_jsonl(path)}
    fresh = FakeDesk(disturbed)
    distil(book_in(disturbed), fresh, CONFIG)
    assert everything(disturbed) == everything(undisturbed)
    assert kept_before.isdisjoint(fresh.teacher.asked)
    assert len(kept_before) + len(fresh.teacher.asked) == 22


def test_a_finished_run_started_again_does_nothing(tmp_path: Path) -> None:
    distil(book_in(tmp_path), FakeDesk(tmp_path), CONFIG)
    before = everything(tmp_path)
    desk = FakeDesk(tmp_path)
    distil(book_in(tmp_path), desk, CONFIG)
    assert (desk.teacher.asked, desk.referee.asked, desk.generator.asked) == ([], [], [])
    assert everything(tmp_path) == before


def test_what_the_teacher_could_not_answer_is_left_out_and_quarantined(tmp_path: Path) -> None:
    desk = FakeDesk(tmp_path, teacher=FakeTeacher(failing=frozenset({"seed-000003"})))
    book = book_in(tmp_path)
    distil(book, desk, CONFIG)
    assert "1 of 10 instructions have no usable teacher response and are left out." in desk.notes
    assert book.verdicts(1)["seed-000003"].label is Label.QUARANTINED
    assert "seed-000003" not in {key for key, _ in desk.referee.asked}
    memory = (tmp_path / "checkpoints" / "iteration-0" / "memory.txt").read_text()
    assert "seed3 number3" not in memory


def test_what_the_referee_cannot_say_is_quarantined_never_easy(tmp_path: Path) -> None:
    unreadable = frozenset({"seed-000001", "seed-000002"})
    book = book_in(tmp_path)
    distil(book, FakeDesk(tmp_path, referee=FakeReferee(unreadable=unreadable)), CONFIG)
    quarantined = {key for key, verdict in book.verdicts(1).items() if verdict.label is Label.QUARANTINED}
    assert quarantined == unreadable
    assert all(verdict.discrepancy is None for verdict in book.verdicts(1).values() if verdict.label is Label.QUARANTINED)


def test_a_run_that_could_judge_nothing_ends_with_the_reason_and_what_to_do(tmp_path: Path) -> None:
    everyone = frozenset(i.key for i in seeds())
    lenient = replace(CONFIG, discrimination=DiscriminationConfig(most_quarantined=1))
    with pytest.raises(ConfigError, match=r"no hard parent.*10 of 10 .* quarantined. 10 of them with this reason: .*Launch a new run"):
        distil(book_in(tmp_path, lenient), FakeDesk(tmp_path, referee=FakeReferee(unreadable=everyone)), lenient)


def test_a_stage_with_too_much_in_quarantine_stops_with_all_it_has_and_asks(tmp_path: Path) -> None:
    three = frozenset({"seed-000001", "seed-000002", "seed-000003"})
    with pytest.raises(TooManyQuarantined, match=r"3 of 10 .* more than the 20% .* 3 of them with this reason"):
        distil(book_in(tmp_path), FakeDesk(tmp_path, referee=FakeReferee(unreadable=three)), CONFIG)
    book = book_in(tmp_path)
    assert (len(book.verdicts(1)), book.candidates(1)) == (10, [])
    well = FakeDesk(tmp_path)
    distil(book, well, CONFIG)
    assert {key for key, _ in well.referee.asked} >= three
    assert all(verdict.label is not Label.QUARANTINED for verdict in book.verdicts(1).values())


def test_a_stage_that_cannot_end_well_any_more_asks_for_nothing_more(tmp_path: Path) -> None:
    config = replace(CONFIG, discrimination=DiscriminationConfig(most_quarantined=0.1))
    book, desk = FolderBook(tmp_path, config, seeds(400)), FakeDesk(tmp_path)
    desk.referee = FakeReferee(unreadable=frozenset(f"seed-{n:06d}" for n in range(400)))
    with pytest.raises(TooManyQuarantined, match=r"The other \d+ were not judged any more"):
        distil(book, desk, config)
    assert 41 <= len(book.verdicts(1)) < 200
    assert len(desk.referee.asked) < 400


@pytest.mark.parametrize("at_once", [1, 16])
def test_the_pools_are_the_same_however_many_are_asked_at_once(tmp_path: Path, at_once: int) -> None:
    config = replace(CONFIG, endpoints={"teacher": replace(CONFIG.endpoints["teacher"], max_at_once=at_once)})
    distil(book_in(tmp_path / "some", config), FakeDesk(tmp_path / "some"), config)
    distil(book_in(tmp_path / "few"), FakeDesk(tmp_path / "few"), CONFIG)
    assert everything(tmp_path / "some") == everything(tmp_path / "few")


def test_a_sample_of_the_cache_pool_is_answered_and_judged_where_the_config_wants_one(tmp_path: Path) -> None:
    config = replace(CONFIG, discrimination=DiscriminationConfig(sample=7))
    desk = FakeDesk(tmp_path)
    book = book_in(tmp_path, config)
    distil(book, desk, config)
    assert [len(book.verdicts(iteration)) for iteration in (1, 2)] == [7, 7]
    assert set(book.student_responses(1)) == set(book.verdicts(1))
    assert {c.parent for c in book.candidates(1)} <= set(book.verdicts(1))
    assert [len(book.cache_pool(iteration)) for iteration in (1, 2)] == [10, 16]


def test_a_run_that_went_on_leaves_its_quarantine_as_it_was(tmp_path: Path) -> None:
    failing, unreadable = frozenset({"seed-000003"}), frozenset({"seed-000001"})
    distil(book_in(tmp_path), FakeDesk(tmp_path, teacher=FakeTeacher(failing=failing), referee=FakeReferee(unreadable=unreadable)), CONFIG)
    before = everything(tmp_path)
    well = FakeDesk(tmp_path)
    distil(book_in(tmp_path), well, CONFIG)
    assert (well.teacher.asked, well.referee.asked) == ([], [])
    assert everything(tmp_path) == before


def test_a_step_run_again_tries_again_what_was_quarantined_and_keeps_one_judgement_of_each_order(tmp_path: Path) -> None:
    desk = FakeDesk(tmp_path, referee=FakeReferee(unreadable=frozenset({"seed-000001"})))
    for planned in plan(CONFIG):
        if planned.step is Step.CANDIDATES:
            break
        run_step(planned, book_in(tmp_path), desk, CONFIG)
    book = book_in(tmp_path)
    run_step(Planned(1, Stage.DISCRIMINATION, Step.JUDGEMENTS), book, FakeDesk(tmp_path), CONFIG)
    assert book.verdicts(1)["seed-000001"].label is not Label.QUARANTINED
    assert len(book.judgements(1)) == 2 * 10


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="Another process is at work"), locked(tmp_path):
        pass


def test_a_pool_without_one_answer_is_a_clear_error(tmp_path: Path) -> None:
    everyone = frozenset(i.key for i in seeds())
    with pytest.raises(ConfigError, match="nothing to imitate"):
        distil(book_in(tmp_path), FakeDesk(tmp_path, teacher=FakeTeacher(failing=everyone)), CONFIG)


def test_a_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    book_in(tmp_path)
    with pytest.raises(ConfigError, match="another config"):
        book_in(tmp_path, replace(CONFIG, seed=2))


def test_a_line_cut_off_by_a_crash_is_dropped_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    drop_unfinished_line(path)
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_jsonl(path)


@pytest.mark.parametrize("start", ["last", "base"])
def test_the_student_starts_from_the_last_checkpoint_or_from_the_base(tmp_path: Path, start: str) -> None:
    config = replace(CONFIG, loop=replace(CONFIG.loop, student_start=start))
    distil(book_in(tmp_path, config), FakeDesk(tmp_path), config)
    memory = (tmp_path / "checkpoints" / "iteration-2" / "memory.txt").read_text().splitlines()
    assert len(memory) == (22 if start == "last" else 6)


def test_responses_that_were_cut_are_kept_as_such_and_counted(tmp_path: Path) -> None:
    class Talkative(FakeStudent):
        def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
            super().respond(instructions, done=done, keep=lambda said: keep([replace(r, cut=r.instruction < "seed-000004") for r in said]))

    class TalkativeDesk(FakeDesk):
        def student(self, *, iteration: int, start: Path | None) -> FakeStudent:
            return Talkative(self.folder / "checkpoints", start)

    desk, book = TalkativeDesk(tmp_path), book_in(tmp_path)
    distil(book, desk, CONFIG)
    assert "4 of 10 responses of the student were cut at respond.max_new_tokens, 1,024, or where its context ends." in desk.notes
    assert sum(response.cut for response in book.student_responses(1).values()) == 4


def test_a_run_leaves_how_varied_each_iteration_is_and_the_traits_of_every_instruction(tmp_path: Path) -> None:
    book = book_in(tmp_path)
    distil(book, FakeDesk(tmp_path), CONFIG)
    measured = [book.diversity(number) for number in range(3)]
    assert [one.made for one in measured if one] == [10, 6, 6]
    assert set(book.traits()) == {i.key for i in book.cache_pool(3)}


def test_a_pool_that_collapses_is_told(tmp_path: Path) -> None:
    config = replace(CONFIG, loop=replace(CONFIG.loop, iterations=1, new_per_iteration=30, similarity=0.95))
    desk = FakeDesk(tmp_path)
    desk.generator = FakeGenerator(write=lambda parent, easy, sample: f"write one long story about the old king of the {sample}th hill")
    distil(FolderBook(tmp_path, config, seeds(24)), desk, config)
    assert "The new instructions are less varied than the seeds." in " ".join(desk.notes)


def test_what_is_judged_again_is_asked_for_anew_and_what_a_crash_left_is_not(tmp_path: Path) -> None:
    config = replace(CONFIG, loop=replace(CONFIG.loop, iterations=1), discrimination=DiscriminationConfig(most_quarantined=1))
    book, desk = book_in(tmp_path, config), FakeDesk(tmp_path)
    steps = {planned.step: planned for planned in plan(config) if planned.iteration == 1}
    for planned in plan(config):
        if planned.iteration == 0 or planned.step is Step.STUDENT_RESPONSES:
            run_step(planned, book, desk, config)
    desk.referee = FakeReferee(unreadable=frozenset(f"seed-{n:06d}" for n in range(4)))
    for _ in range(3):
        run_step(steps[Step.JUDGEMENTS], book, desk, config)
    assert desk.referee.again == [0] * 20 + [1] * 8 + [2] * 8
    assert sorted(verdict.tries for verdict in book.verdicts(1).values()) == [1] * 6 + [3] * 4
