"""What a run in a folder was permitted, what it paid, and what its budget says after a restart or a kill."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.fakes import FakeDesk
from tests.http_server import Server, running, said
from tests.stack import wait_until
from trainer.calls import Call, Done, Outcome
from trainer.config import DiscriminationConfig, EndpointConfig, RefereeConfig, RunConfig
from trainer.endpoints import EndpointRoles, open_roles
from trainer.errors import ConfigError, ResponseFormatError
from trainer.folder import FolderBook
from trainer.folder_calls import FolderCalls
from trainer.jsonl import read_jsonl
from trainer.loop import judge_cache_pool
from trainer.parsing import Scores
from trainer.records import Completion, Instruction, Label, Response

CONFIG = EndpointConfig(rpm=600_000, max_at_once=16)
MOST, COST = 1000, 100
"""Nanodollars that a call can cost, and does cost."""


def calls_in(folder: Path | None, **budget: int) -> FolderCalls:
    """From turn to turn a minute goes by, so that the pace holds nothing back."""
    minutes = itertools.count(1_000_000, 60)
    return FolderCalls(folder / "completions.jsonl" if folder else None, {"fake": CONFIG}, clock=lambda: next(minutes), **budget)


def call(number: int) -> Call:
    return Call(key=f"{number:064x}", role="teacher", input_tokens=1, output_tokens=1, most_nanodollars=MOST)


def ended(wanted: Call, outcome: Outcome) -> Done:
    return Done(call=wanted, outcome=outcome, completion=answer(wanted) if outcome is Outcome.ANSWERED else None)


def answer(wanted: Call) -> Completion:
    return Completion(
        key=wanted.key,
        endpoint="fake",
        model="fake",
        role=wanted.role,
        request={},
        text="yes",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        nanodollars=COST,
        latency_s=0.1,
    )


def permitted(calls: FolderCalls, *numbers: int) -> set[int]:
    """Which of these calls may be made."""
    turn = calls.turn("fake", [], [call(number) for number in numbers])
    return {number for number in numbers if call(number).key in turn.permitted}


def end(calls: FolderCalls, number: int, outcome: Outcome) -> None:
    calls.turn("fake", [ended(call(number), outcome)], [])


# Over restarts ------------------------------------------------------------------------------------------------------------------------


def test_a_budget_of_two_calls_is_two_calls_over_three_lives(tmp_path: Path) -> None:
    sent = 0
    for life in range(3):
        calls = calls_in(tmp_path, most_calls=2)
        for number in range(5):
            if permitted(calls, 10 * life + number):
                sent += 1
                end(calls, 10 * life + number, Outcome.UNANSWERED)
    assert sent == 2
    assert calls_in(tmp_path).unanswered == {"teacher": 2}
    assert calls_in(tmp_path).nanodollars == 2 * MOST


@pytest.mark.parametrize("outcome", [Outcome.UNSENT, Outcome.LIMITED, Outcome.FAILED, Outcome.REFUSED])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_call_that_was_not_paid_is_given_back_to_the_budget(tmp_path: Path, outcome: Outcome, restarted: bool) -> None:
    calls = calls_in(tmp_path, most_calls=1, most_nanodollars=MOST)
    assert permitted(calls, 1) == {1}
    end(calls, 1, outcome)
    if restarted:
        calls = calls_in(tmp_path, most_calls=1, most_nanodollars=MOST)
    assert (calls.nanodollars, sum(calls.unanswered.values())) == (0, 0)
    assert permitted(calls, 2) == {2}


@pytest.mark.parametrize("restarted", [False, True])
def test_an_answered_call_costs_what_it_cost(tmp_path: Path, restarted: bool) -> None:
    calls = calls_in(tmp_path)
    permitted(calls, 1)
    end(calls, 1, Outcome.ANSWERED)
    calls = calls_in(tmp_path) if restarted else calls
    assert (len(calls), calls.nanodollars, calls.unanswered) == (1, COST, {})


@pytest.mark.parametrize("restarted", [False, True])
def test_a_call_that_was_tried_three_times_is_counted_for_each_that_may_have_been_paid(tmp_path: Path, restarted: bool) -> None:
    calls = calls_in(tmp_path)
    for outcome in (Outcome.UNANSWERED, Outcome.FAILED, Outcome.ANSWERED):
        assert permitted(calls, 1) == {1}
        end(calls, 1, outcome)
    calls = calls_in(tmp_path) if restarted else calls
    assert (len(calls), calls.nanodollars, calls.unanswered) == (1, MOST + COST, {"teacher": 1})


def test_a_permission_that_nobody_ended_counts_after_a_restart_and_may_be_asked_for_again(tmp_path: Path) -> None:
    permitted(calls_in(tmp_path), 1, 2)
    calls = calls_in(tmp_path, most_calls=3)
    assert calls.unanswered == {"teacher": 2}
    assert permitted(calls, 1, 2) == {1}


def test_a_second_answer_to_a_call_was_paid_as_well(tmp_path: Path) -> None:
    calls = calls_in(tmp_path)
    permitted(calls, 1)
    calls.turn("fake", [ended(call(1), Outcome.ANSWERED)] * 2, [])
    end(calls, 1, Outcome.ANSWERED)
    assert (len(calls), calls.nanodollars, calls.unanswered) == (1, 3 * COST, {"teacher": 2})
    assert len(read_jsonl(tmp_path / "completions.jsonl")) == 1


def test_a_folder_from_before_attempts_were_written_down_goes_on(tmp_path: Path) -> None:
    calls = calls_in(tmp_path)
    permitted(calls, 1)
    end(calls, 1, Outcome.ANSWERED)
    (tmp_path / "attempts.jsonl").unlink()
    assert (calls_in(tmp_path).nanodollars, calls_in(tmp_path).unanswered) == (COST, {})


def test_there_are_no_batches_in_a_folder() -> None:
    calls = calls_in(None)
    assert calls.batches("fake") == []
    with pytest.raises(ConfigError, match="There is no batch"):
        calls.close_batch("b", state="failed", lost=True)


BUDGET = 30


def test_a_budget_holds_for_a_run_that_is_killed_again_and_again(tmp_path: Path) -> None:
    with running(Server()) as server:
        config = tiny.make_config(tiny.write_seeds(tmp_path / "seeds.json"), port=server.port)
        (tmp_path / "config.toml").write_text(tiny.as_toml(config))
        command = [sys.executable, "-m", "trainer", "run", str(tmp_path / "config.toml"), "--out", str(tmp_path / "run")]
        command += ["--most-calls", str(BUDGET)]
        server.go.clear()
        for _ in range(2):
            before = len(server.asked)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            wait_until(lambda before=before: len(server.asked) > before, timeout_s=60, what="a call under way")
            process.kill()
            process.wait(10)
        server.go.set()
        last = subprocess.run(command, capture_output=True, text=True, timeout=120)
        sent = len(server.asked)
    assert last.returncode == 1
    assert f"{BUDGET} of {BUDGET} calls are made" in last.stderr
    assert 0 < len(read_jsonl(tmp_path / "run" / "completions.jsonl")) < sent <= BUDGET


# Stored replies -----------------------------------------------------------------------------------------------------------------------


@dataclass
class ServedDesk(FakeDesk):
    """A desk whose roles are real ones, on the endpoints of a book's config."""

    book: FolderBook | None = None

    def roles(self) -> AbstractAsyncContextManager[EndpointRoles]:  # type: ignore[override]
        assert self.book is not None
        return open_roles(self.book.config, self.book.calls, environ={})


def judge_in(folder: Path, config: RunConfig) -> dict[str, Label]:
    """The labels of the cache pool of iteration 1, after its judging in this folder, as `python -m trainer run` has it."""
    pool = [Instruction(key=f"seed-{n:06d}", text=f"task {n}") for n in range(3)]
    with closing(FolderBook(folder, config, pool)) as book:
        desk = ServedDesk(folder, book=book)
        if not book.student_responses(1):
            desk.run(keep_teacher_responses(book, pool))
            book.keep_student_responses(1, [Response(instruction=i.key, text="mine") for i in pool])
        judge_cache_pool(book, desk, config, 1)
        return {key: verdict.label for key, verdict in book.verdicts(1).items()}


async def keep_teacher_responses(book: FolderBook, pool: list[Instruction]) -> None:
    for instruction in pool:
        await book.keep_teacher_response(Response(instruction=instruction.key, text="the teacher's"))


def test_a_changed_parser_reads_stored_replies_again_and_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parser_of_last_year(reply: str, **shown: Any) -> Scores:
        raise ResponseFormatError("It has no eyes for this form.")

    with running(Server()) as server:
        server.answer = lambda asked: said("Score of assistant 1: 9\nScore of assistant 2: 9")
        endpoint = EndpointConfig(base_url=server.url, key_env="", rpm=600_000)
        lenient = DiscriminationConfig(most_quarantined=1.0)
        config = RunConfig(endpoints={"teacher": endpoint}, referee=RefereeConfig(asks=2), discrimination=lenient)
        with monkeypatch.context() as patched:
            patched.setattr("trainer.referee.parse_scores", parser_of_last_year)
            assert set(judge_in(tmp_path, config).values()) == {Label.QUARANTINED}
        paid = len(server.asked)
        assert set(judge_in(tmp_path, config).values()) == {Label.EASY}
    assert paid == len(server.asked) == 3 * 2 * 2
    assert len(read_jsonl(tmp_path / "completions.jsonl")) == paid
