"""The offline teacher's limits and faults, and what it charges for, seen from the other end of the wire."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.asking import CLIENT, ask, text_of
from tests.stack import wait_until
from trainer import prompts
from trainer.demo.knobs import Knobs, add_knobs
from trainer.demo.limits import Bucket
from trainer.demo.process import OfflineTeacher
from trainer.records import Instruction

TASK = prompts.teacher_messages(Instruction(key="seed-000000", text="reverse: badc"))
JUDGE = prompts.referee_messages(Instruction(key="seed-000000", text="reverse: badc"), "cdab", "cdaa")


# Limits -------------------------------------------------------------------------------------------------------------------------------


def test_above_its_limit_it_answers_429_and_says_when_to_come_again() -> None:
    with OfflineTeacher(Knobs(rpm=60)) as running:
        first, second = (ask(running, TASK) for _ in range(2))
        assert running.stats()["limited"] == 1
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "60"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert second.status_code == 429
    assert second.headers["retry-after"] == "1"
    assert 0 < int(second.headers["retry-after-ms"]) <= 1000


def test_a_limit_it_keeps_to_itself_is_in_no_header() -> None:
    with OfflineTeacher(Knobs(rpm=60, tpm=600, no_limit_headers=True)) as running:
        replies = [ask(running, TASK) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert not [name for reply in replies for name in reply.headers if name.startswith(("x-ratelimit", "retry-after"))]


def test_above_its_limit_of_tokens_it_answers_429_and_tells_what_is_left() -> None:
    with OfflineTeacher(Knobs(tpm=60)) as running:
        first, second = (ask(running, TASK) for _ in range(2))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "60"
    assert first.headers["x-ratelimit-remaining-tokens"] == "0"
    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(second.headers["retry-after-ms"]) <= 1000 * first.json()["usage"]["total_tokens"]


def test_no_more_calls_are_under_way_at_one_time_than_it_lets_in() -> None:
    with OfflineTeacher(Knobs(at_once=2, latency_ms=500)) as running, ThreadPoolExecutor(6) as threads:
        statuses = Counter(reply.status_code for reply in threads.map(lambda seed: ask(running, TASK, seed=seed), range(6)))
        stats = running.stats()
    assert stats["most_at_once"] == 2
    assert statuses == {200: stats["answered"], 429: stats["limited"]}
    assert 2 <= statuses[200] < 6


@given(rpm=st.integers(1, 6000), gaps=st.lists(st.floats(0, 2), max_size=200))
def test_a_bucket_lets_through_no_more_than_its_rate_and_one_second_of_it(rpm: int, gaps: list[float]) -> None:
    bucket, now, passed = Bucket(rpm), 100.0, 0
    start = now
    for gap in gaps:
        now += gap
        passed += bucket.take(now) == 0
    assert passed <= max(1, rpm / 60) + (now - start) * rpm / 60 + 1e-6


@given(per_minute=st.integers(60, 60_000), amounts=st.lists(st.integers(1, 3000), min_size=1, max_size=50))
def test_what_waits_as_long_as_it_was_told_comes_through_and_at_the_rate_of_the_bucket(per_minute: int, amounts: list[int]) -> None:
    bucket, now = Bucket(per_minute), 50.0
    for amount in amounts:
        wait_s = bucket.take(now, amount)
        now += wait_s + 1e-6
        assert not wait_s or bucket.take(now, amount) == 0.0
    at_the_rate_s = (sum(amounts[:-1]) - per_minute / 60) / (per_minute / 60)  # the last one may leave a debt
    assert now - 50.0 >= at_the_rate_s - 1e-3


# Faults -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "status", "counted"), [(Knobs(error_rate=0.5), 500, "errors"), (Knobs(limited_rate=0.5), 429, "limited")]
)
def test_a_fault_is_drawn_anew_for_each_attempt_so_that_a_retry_comes_through(knobs: Knobs, status: int, counted: str) -> None:
    with OfflineTeacher(knobs) as running:
        replies = [ask(running, TASK) for _ in range(24)]
        assert running.stats()[counted] == [reply.status_code for reply in replies].count(status)
    assert {reply.status_code for reply in replies} == {200, status}
    assert {reply.headers.get("retry-after-ms") for reply in replies} == {None, *(["100"] if status == 429 else [])}


def test_a_call_that_hangs_is_charged_and_held_until_its_client_leaves() -> None:
    with OfflineTeacher(Knobs(hang_rate=1, at_once=1)) as running:
        with pytest.raises(httpx.ReadTimeout):
            ask(running, TASK, key="one", timeout_s=0.3)
        wait_until(lambda: ask(running, TASK, key="one").status_code == 200, timeout_s=10, what="the place of the call that hung")
        stats = running.stats()
    assert (stats["hung"], stats["charged"], stats["replayed"], stats["answered"], stats["distinct"]) == (1, 1, 1, 1, 1)


def test_a_reply_that_breaks_in_the_middle_is_charged_and_its_retry_is_answered_without_another_charge() -> None:
    with OfflineTeacher(Knobs(reset_rate=1)) as running:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            ask(running, TASK, key="one")
        assert text_of(ask(running, TASK, key="one")) == "cdab"
        stats = running.stats()
    assert (stats["reset"], stats["charged"], stats["replayed"], stats["answered"]) == (1, 1, 1, 1)


def test_a_mangled_reply_is_charged_and_its_retry_is_answered_without_another_charge() -> None:
    with OfflineTeacher(Knobs(mangle_rate=1)) as running:
        with pytest.raises(json.JSONDecodeError):
            ask(running, TASK, key="one").json()
        assert text_of(ask(running, TASK, key="one")) == "cdab"
        stats = running.stats()
    assert (stats["mangled"], stats["charged"], stats["replayed"], stats["answered"]) == (1, 1, 1, 1)


def test_a_reply_that_is_cut_off_is_cut_off_again() -> None:
    with OfflineTeacher(Knobs(cut_rate=1)) as running:
        choices = [ask(running, JUDGE).json()["choices"][0] for _ in range(2)]
        assert running.stats()["cut"] == 2
    assert choices[0] == choices[1]
    assert choices[0]["finish_reason"] == "length"
    assert "Score of assistant 2" not in choices[0]["message"]["content"]


def test_an_outage_is_answered_503_until_it_is_over_and_the_server_still_says_that_it_is_there() -> None:
    with OfflineTeacher() as running:
        running.begin_outage(60)
        statuses = [ask(running, TASK).status_code, CLIENT.get(f"{running.base_url}/batches").status_code]
        assert CLIENT.get(f"{running.url}/health").json() == {"status": "ok"}
        running.begin_outage(0)
        assert text_of(ask(running, TASK)) == "cdab"
        assert (statuses, running.stats()["unavailable"]) == ([503, 503], 2)


@pytest.mark.parametrize("seconds", ["", "-1", "soon", "3601"])
def test_an_outage_needs_a_length(seconds: str) -> None:
    with OfflineTeacher() as running:
        assert CLIENT.post(f"{running.url}/outage?seconds={seconds}").status_code == 400


def test_where_it_does_not_tell_tokens_there_is_no_usage() -> None:
    with OfflineTeacher(Knobs(no_usage=True)) as running:
        assert "usage" not in ask(running, TASK).json()
        assert running.stats()["completion_tokens"] == 1


# What is charged ----------------------------------------------------------------------------------------------------------------------


def test_a_request_that_comes_again_under_its_key_has_the_same_reply_and_is_charged_once() -> None:
    with OfflineTeacher() as running:
        first, second = (ask(running, TASK, key="one") for _ in range(2))
        once = running.stats()
        ask(running, TASK, key="two")
        twice = running.stats()
    assert first.content == second.content
    assert (once["charged"], once["replayed"], once["answered"], once["repeated"]) == (1, 1, 2, 1)
    assert (once["prompt_tokens"], once["completion_tokens"]) == (first.json()["usage"]["prompt_tokens"], 1)
    assert (twice["charged"], twice["completion_tokens"]) == (2, 2)


def test_without_a_key_every_answer_is_charged() -> None:
    with OfflineTeacher() as running:
        for _ in range(3):
            ask(running, TASK)
        stats = running.stats()
    assert (stats["charged"], stats["replayed"], stats["distinct"], stats["repeated"]) == (3, 0, 1, 2)


def test_what_is_not_answered_for_want_of_a_place_or_by_an_error_is_not_charged() -> None:
    with OfflineTeacher(Knobs(error_rate=1)) as running:
        ask(running, TASK, key="one")
        stats = running.stats()
    assert (stats["errors"], stats["charged"], stats["prompt_tokens"]) == (1, 0, 0)


# Knobs --------------------------------------------------------------------------------------------------------------------------------


@given(
    st.builds(
        Knobs,
        seed=st.integers(-9, 9),
        rpm=st.floats(0, 1e6),
        at_once=st.integers(0, 99),
        no_usage=st.booleans(),
        batch_refused=st.booleans(),
        garble=st.floats(0, 1),
        position_bias=st.floats(-9, 9),
    )
)
def test_the_options_of_some_knobs_give_those_knobs(knobs: Knobs) -> None:
    parser = argparse.ArgumentParser()
    add_knobs(parser)
    assert Knobs(**vars(parser.parse_args(knobs.options()))) == knobs
