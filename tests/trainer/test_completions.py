"""The client against real HTTP: a scripted server says what servers say on bad days."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainer.calls import Call, Calls
from trainer.completions import ODD_REPLIES, REFUSED_ITEMS, Endpoint
from trainer.config import EndpointConfig, GeneratorConfig, RoleConfig
from trainer.errors import BudgetSpent, ConfigError, RequestRefused, ResponseFormatError, TeacherUnavailable
from trainer.folder_calls import FolderCalls
from trainer.generator import EndpointGenerator
from trainer.prompts import REFEREE_SCHEMA
from trainer.records import Completion, Instruction, Judgement, Order, Response
from trainer.referee import EndpointReferee
from trainer.teacher import EndpointTeacher
from trainer.wire import completion_key

Reply = tuple[int, dict[str, str], str]
"""Status, headers, body."""

MESSAGES = [{"role": "user", "content": "Say hello."}]
ROLE = RoleConfig(endpoint="fake", asks=3)


def said(text: str, *, finish_reason: str = "stop") -> Reply:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body)


def refused(status: int, message: str = "no") -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps({"error": {"message": message}})


class FakeServer(ThreadingHTTPServer):
    """Answers by `answer(number of the call, request)`; `go` holds replies back until it is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.answer: Callable[[int, dict[str, Any]], Reply] = lambda number, request: said(f"answer {number}")
        self.go = threading.Event()
        self.go.set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up while we were silent is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.calls.append(request)
            self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            number = len(self.server.calls)
        self.server.go.wait(10)
        status, headers, body = self.server.answer(number, request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    it = FakeServer()
    thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield it
    it.go.set()
    it.shutdown()
    thread.join()
    it.server_close()


def calls_in(path: Path | None = None, **budget: int) -> FolderCalls:
    return FolderCalls(path, {"fake": EndpointConfig(max_at_once=4, rpm=600_000)}, **budget)


@pytest.fixture
def store() -> FolderCalls:
    """The calls of one process, kept in memory alone."""
    return calls_in()


def config_of(server: FakeServer, **values: Any) -> EndpointConfig:
    return replace(EndpointConfig(base_url=server.url, model="fake", key_env="", max_at_once=4, timeout_s=5, retries=0), **values)


def with_endpoint(config: EndpointConfig, store: Calls, work: Callable[[Endpoint], Any], environ: dict[str, str] | None = None) -> Any:
    async def run() -> Any:
        async with Endpoint("fake", config, store, environ=environ or {}) as endpoint:
            return await work(endpoint)

    return asyncio.run(run())


def ask(server: FakeServer, store: FolderCalls, *, sample: int = 0, **values: Any) -> Completion:
    completion: Completion = with_endpoint(
        config_of(server, **values), store, lambda e: e.complete("teacher", MESSAGES, ROLE, sample=sample)
    )
    return completion


def test_an_answer_is_kept_and_never_asked_for_again(server: FakeServer, store: FolderCalls) -> None:
    first = ask(server, store)
    assert ask(server, store) == first
    assert (first.text, first.prompt_tokens, first.completion_tokens, len(server.calls)) == ("answer 1", 5, 2, 1)
    assert store.kept == [first]


def test_another_sample_number_is_another_call(server: FakeServer, store: FolderCalls) -> None:
    assert ask(server, store, sample=0).text != ask(server, store, sample=1).text
    assert "seed" not in server.calls[0]
    ask(server, store, sample=2, send_seed=True)
    assert server.calls[-1]["seed"] == 2


def test_the_same_question_at_the_same_time_is_one_call(server: FakeServer, store: FolderCalls) -> None:
    async def work(endpoint: Endpoint) -> list[Completion]:
        return list(await asyncio.gather(*(endpoint.complete("teacher", MESSAGES, ROLE) for _ in range(5))))

    assert len({completion.text for completion in with_endpoint(config_of(server), store, work)}) == 1
    assert len(server.calls) == 1


def test_the_key_does_not_depend_on_the_order_of_the_request() -> None:
    assert completion_key({"a": 1, "b": "é"}) == completion_key({"b": "é", "a": 1})
    assert completion_key({"a": 1}) != completion_key({"a": 2})


def test_a_call_tells_its_content_address_so_that_a_server_may_charge_once(server: FakeServer, store: FolderCalls) -> None:
    completion = ask(server, store)
    assert server.headers_seen[0]["idempotency-key"] == completion.key


def test_no_more_calls_are_under_way_than_the_endpoint_takes(server: FakeServer, store: FolderCalls) -> None:
    under_way = most = 0
    lock = threading.Lock()
    both = threading.Barrier(2, timeout=5)

    def answer(number: int, request: dict[str, Any]) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        both.wait()
        with lock:
            under_way -= 1
        return said("yes")

    server.answer = answer

    async def work(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.complete("teacher", MESSAGES, ROLE, sample=n) for n in range(8)))

    with_endpoint(config_of(server), FolderCalls(None, {"fake": EndpointConfig(max_at_once=2, rpm=600_000)}), work)
    assert most == 2
    assert len(server.calls) == 8


def test_a_stop_keeps_the_answers_that_are_on_their_way_and_starts_no_new_calls(server: FakeServer, store: FolderCalls) -> None:
    server.go.clear()

    async def work(endpoint: Endpoint) -> None:
        calls = [asyncio.create_task(endpoint.complete("teacher", MESSAGES, ROLE, sample=n)) for n in range(9)]
        while len(server.calls) < 4:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        server.go.set()

    with_endpoint(config_of(server), store, work)
    assert len(server.calls) == len(store.kept) == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_tried_again(server: FakeServer, store: FolderCalls, status: int) -> None:
    server.answer = lambda number, request: refused(status) if number == 1 else said("well again")
    assert ask(server, store, retries=1).text == "well again"


def test_nothing_is_kept_of_a_failure(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(500, "boom")
    with pytest.raises(ResponseFormatError, match=r"No answer after 1 attempts.*HTTP 500.*boom"):
        ask(server, store)
    assert store.kept == []


def test_an_outage_quarantines_nothing_and_ends_by_itself(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(503, "busy") if number < 11 else said("fine")
    pauses: list[str] = []

    async def work(endpoint: Endpoint) -> list[Completion]:
        return list(await asyncio.gather(*(endpoint.complete("teacher", MESSAGES, ROLE, sample=n) for n in range(8))))

    async def run() -> list[Completion]:
        async with Endpoint("fake", config_of(server, retries=2), store, environ={}, on_pause=pauses.append) as endpoint:
            return await work(endpoint)

    assert [completion.text for completion in asyncio.run(run())] == ["fine"] * 8
    assert "HTTP 503" in pauses[0]
    assert pauses[-1] == ""


def test_the_last_call_of_a_budget_is_the_last_call(server: FakeServer) -> None:
    async def work(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.complete("teacher", MESSAGES, ROLE, sample=n) for n in range(30)))

    store = calls_in(most_calls=11)
    with pytest.raises(BudgetSpent, match=r"11 of 11 calls are made. Raise it to go on"):
        with_endpoint(config_of(server), store, work)
    assert len(server.calls) == len(store.kept) == 11


def test_no_call_is_made_that_could_cost_more_than_is_left(server: FakeServer) -> None:
    priced = config_of(server, price_input=1.0, price_output=10.0)
    most_of_one = 10_000 * ROLE.max_tokens  # nanodollars of the longest reply, its prompt apart
    store = calls_in(most_nanodollars=2 * most_of_one)

    async def work(endpoint: Endpoint) -> None:
        await asyncio.gather(*(endpoint.complete("teacher", MESSAGES, ROLE, sample=n) for n in range(10_000)))

    with pytest.raises(BudgetSpent, match="Raise it to go on"):
        with_endpoint(priced, store, work)
    assert store.nanodollars == sum(completion.nanodollars for completion in store.kept) == 25_000 * len(server.calls)
    assert most_of_one - 50_000 < store.nanodollars <= 2 * most_of_one


def test_half_a_character_and_nul_do_not_keep_an_answer_from_being_kept(server: FakeServer, store: FolderCalls, tmp_path: Path) -> None:
    server.answer = lambda number, request: said("half \ud83d and \x00 nothing")
    assert ask(server, store).text == "half ? and  nothing"
    folder = calls_in(tmp_path / "completions.jsonl")
    with_endpoint(config_of(server), folder, lambda e: e.complete("teacher", MESSAGES, ROLE))
    assert len(calls_in(tmp_path / "completions.jsonl")) == 1


def test_another_server_behind_the_same_name_is_asked_anew(server: FakeServer, store: FolderCalls) -> None:
    ask(server, store)
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    ask(server, store, base_url=elsewhere)
    assert len(store.kept) == len(server.calls) == 2


def test_the_offline_teacher_may_move_without_being_asked_anew(server: FakeServer, store: FolderCalls) -> None:
    config = config_of(server, base_url="offline")

    async def once() -> str:
        async with Endpoint("fake", config, store, url=server.url, environ={}) as endpoint:
            return (await endpoint.complete("teacher", MESSAGES, ROLE)).key

    assert asyncio.run(once()) == asyncio.run(once())
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (refused(401, "bad key"), ConfigError, "wants a key: bad key"),
        (refused(403, "not yours"), ConfigError, "wants a key: not yours"),
        (refused(404, "no such model"), ConfigError, "does not know the model 'fake'"),
        (refused(400, "context length"), ResponseFormatError, "context length"),
        ((400, {"Content-Type": "application/json"}, '{"detail": "pinned to a model"}'), ResponseFormatError, "pinned to a model"),
        ((302, {"Location": "http://127.0.0.1:1/"}, ""), ConfigError, "redirects elsewhere"),
        ((200, {"Content-Type": "text/html"}, "<html>hello</html>"), ConfigError, "ends in /v1"),
        ((200, {"Content-Type": "application/json"}, "{}"), ResponseFormatError, "not a chat completion"),
        ((200, {"Content-Type": "application/json"}, "{not json"), ResponseFormatError, "not a chat completion"),
    ],
)
def test_what_goes_wrong_is_sorted_by_who_can_act(
    server: FakeServer, store: FolderCalls, reply: Reply, error: type[Exception], words: str
) -> None:
    server.answer = lambda number, request: reply
    with pytest.raises(error, match=words):
        ask(server, store)


def test_an_endpoint_that_is_down_is_named_with_its_address(store: FolderCalls) -> None:
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", key_env="", retries=0)
    with pytest.raises(ResponseFormatError, match=r"'fake' \(http://127.0.0.1:9/v1\) could not be reached"):
        with_endpoint(config, store, lambda e: e.complete("teacher", MESSAGES, ROLE))


def test_a_silent_endpoint_is_given_up_after_its_timeout(server: FakeServer, store: FolderCalls) -> None:
    server.go.clear()
    with pytest.raises(ResponseFormatError, match=r"did not answer within 0.2 s"):
        ask(server, store, timeout_s=0.2)
    assert store.unanswered == {"teacher": 1}


def test_a_missing_key_names_the_variable_and_a_set_one_is_sent(server: FakeServer, store: FolderCalls) -> None:
    config = config_of(server, key_env="MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY, which is not set"):
        Endpoint("fake", config, store, environ={})
    with_endpoint(config, store, lambda e: e.complete("teacher", MESSAGES, ROLE), environ={"MY_KEY": "s3cret"})
    assert server.headers_seen[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("key", ["s3cret\n", " s3cret", "s\u00e9cret"])
def test_a_value_that_no_header_can_carry_is_told_without_saying_it(server: FakeServer, store: FolderCalls, key: str) -> None:
    with pytest.raises(ConfigError, match="The value of MY_KEY cannot be a key") as told:
        Endpoint("fake", config_of(server, key_env="MY_KEY"), store, environ={"MY_KEY": key})
    assert key.strip() not in str(told.value)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_server_that_says_the_key_back_does_not_bring_it_into_the_words(server: FakeServer, store: FolderCalls, status: int) -> None:
    server.answer = lambda number, request: refused(status, "x" * 490 + " I do not take s3cret-s3cret")
    config = config_of(server, key_env="MY_KEY")
    with pytest.raises((ConfigError, ResponseFormatError)) as told:
        with_endpoint(config, store, lambda e: e.complete("teacher", MESSAGES, ROLE), environ={"MY_KEY": "s3cret-s3cret"})
    assert "s3cret" not in str(told.value)
    assert ("refused the key in MY_KEY" in str(told.value)) is (status == 401)


def test_a_server_that_speaks_no_http_and_says_the_key_back_is_told_without_it(store: FolderCalls) -> None:
    async def say_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(next(line for line in head.split(b"\r\n") if b"s3cret" in line) + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    async def ask_it() -> None:
        server = await asyncio.start_server(say_back, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        config = EndpointConfig(base_url=url, model="fake", key_env="MY_KEY", retries=0)
        async with server, Endpoint("fake", config, store, environ={"MY_KEY": "s3cret-s3cret"}) as endpoint:
            await endpoint.complete("teacher", MESSAGES, ROLE)

    with pytest.raises(ResponseFormatError, match="is no valid HTTP") as told:
        asyncio.run(ask_it())
    assert "s3cret" not in str(told.value)
    assert store.unanswered == {"teacher": 1}


def test_a_first_reply_that_was_garbled_is_asked_for_again_and_may_have_been_paid(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: (200, {}, '{"choi') if number == 1 else said("hello")
    assert ask(server, store, retries=1).text == "hello"
    assert store.unanswered == {"teacher": 1}


def test_a_server_that_sends_nothing_but_other_json_is_the_wrong_one(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: (200, {}, '{"models": []}')

    async def work(endpoint: Endpoint) -> list[Any]:
        asked = (endpoint.complete("teacher", MESSAGES, ROLE, sample=n) for n in range(ODD_REPLIES))
        return await asyncio.gather(*asked, return_exceptions=True)

    *stray, last = sorted(map(type, with_endpoint(config_of(server), store, work)), key=lambda kind: kind is ConfigError)
    assert (set(stray), last) == ({ResponseFormatError}, ConfigError)


def test_what_is_refused_once_is_not_asked_with_another_sample(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(400, "content filter")
    response = with_endpoint(config_of(server), store, lambda e: EndpointTeacher(e, ROLE).respond(INSTRUCTION))
    assert "content filter" in response.failure
    assert len(server.calls) == 1


def responses_to(numbers: range) -> Callable[[Endpoint], Any]:
    async def work(endpoint: Endpoint) -> list[Response]:
        teacher = EndpointTeacher(endpoint, ROLE)
        return [await teacher.respond(Instruction(key=str(n), text=str(n))) for n in numbers]

    return work


def test_an_endpoint_that_refuses_every_item_stops_the_stage_instead_of_burning_the_pool(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(400, "no such parameter")
    with_endpoint(config_of(server), store, responses_to(range(REFUSED_ITEMS - 1)))
    with pytest.raises(TeacherUnavailable, match="refused 20 requests and answered none"):
        with_endpoint(config_of(server), store, responses_to(range(REFUSED_ITEMS)))


def test_an_endpoint_that_answered_before_may_refuse_as_many_items_as_it_likes(server: FakeServer, store: FolderCalls) -> None:
    ask(server, store)
    server.answer = lambda number, request: refused(400, "content filter")
    responses = with_endpoint(config_of(server), store, responses_to(range(3 * REFUSED_ITEMS)))
    assert all("content filter" in response.failure for response in responses)


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_structured_output_is_asked_without_whatever_its_words_are(
    server: FakeServer, store: FolderCalls, status: int
) -> None:
    server.answer = lambda number, request: refused(status, "extra fields") if "response_format" in request else said("hello")

    async def work(endpoint: Endpoint) -> None:
        for sample in range(2):
            await endpoint.complete("referee", MESSAGES, ROLE, sample=sample, schema=REFEREE_SCHEMA)

    with_endpoint(config_of(server, structured="json_schema"), store, work)
    assert ["response_format" in request for request in server.calls] == [True, False, False]


@pytest.mark.parametrize("hiccup", [refused(429, "slow down"), refused(500, "busy")])
def test_a_server_without_structured_output_that_is_busy_as_well_is_asked_again(
    server: FakeServer, store: FolderCalls, hiccup: Reply
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Reply:
        if "response_format" in request:
            return refused(422, "extra fields")
        return hiccup if number == 2 else said("hello")

    server.answer = answer
    config = config_of(server, structured="json_schema", retries=1)
    completion = with_endpoint(config, store, lambda e: e.complete("referee", MESSAGES, ROLE, schema=REFEREE_SCHEMA))
    assert completion.text == "hello"
    assert ["response_format" in request for request in server.calls] == [True, False, False]


def test_structured_output_that_worked_is_not_given_up_for_one_request_that_is_refused(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(400, "content filter") if number == 2 else said("hello")

    async def work(endpoint: Endpoint) -> list[Any]:
        return [
            (await asyncio.gather(endpoint.complete("referee", MESSAGES, ROLE, sample=n, schema=REFEREE_SCHEMA), return_exceptions=True))[0]
            for n in range(3)
        ]

    outcomes = with_endpoint(config_of(server, structured="json_schema"), store, work)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Completion", "RequestRefused", "Completion"]
    assert all("response_format" in request for request in server.calls)


def test_a_request_too_large_for_the_limits_is_refused_and_not_asked_for_ever(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(429, "Request too large for fake on tokens per min: Limit 30000, Requested 40000.")
    with pytest.raises(RequestRefused, match="Requested 40000"):
        ask(server, store)
    assert len(server.calls) == 1


def test_a_call_that_is_always_answered_429_ends_while_others_are_answered(server: FakeServer, store: FolderCalls) -> None:
    def answer(number: int, request: dict[str, Any]) -> Reply:
        if request["messages"][0]["content"] == "No.":
            return 429, {"Retry-After-Ms": "1"}, "{}"
        return said("hello")

    server.answer = answer

    async def work(endpoint: Endpoint) -> list[Any]:
        others = [endpoint.complete("teacher", MESSAGES, ROLE, sample=n) for n in range(40)]
        never = endpoint.complete("teacher", [{"role": "user", "content": "No."}], ROLE)
        return await asyncio.gather(never, *others, return_exceptions=True)

    never, *others = with_endpoint(config_of(server), store, work)
    assert isinstance(never, ResponseFormatError)
    assert "Answered 429 12 times" in str(never)
    assert all(isinstance(other, Completion) for other in others)


def test_calls_in_batches_are_refused_before_anything_is_counted(server: FakeServer, store: FolderCalls) -> None:
    request = Call(key="a" * 64, role="teacher", input_tokens=1, output_tokens=1, batch=True)
    with pytest.raises(ConfigError, match="Batch mode needs the web version"):
        store.turn("fake", [], [request])
    assert not store.unanswered


def test_a_refusal_that_is_not_about_structured_output_is_told_as_it_was(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(400, "content filter")
    with pytest.raises(ResponseFormatError, match="content filter"):
        with_endpoint(
            config_of(server, structured="json_schema"), store, lambda e: e.complete("referee", MESSAGES, ROLE, schema=REFEREE_SCHEMA)
        )


# Roles


INSTRUCTION = Instruction(key="a", text="Add 1 and 1.")


def respond(server: FakeServer, store: FolderCalls) -> Response:
    response: Response = with_endpoint(config_of(server), store, lambda e: EndpointTeacher(e, ROLE).respond(INSTRUCTION))
    return response


def test_a_teacher_that_is_cut_off_is_given_up_at_once_for_it_would_be_cut_off_again(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: said("and then", finish_reason="length")
    response = respond(server, store)
    assert (response.text, response.failure) == ("", "The reply was cut off at 2 tokens (length).")
    assert len(server.calls) == 1


def test_an_empty_reply_is_asked_for_again(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: said("  \n" if number == 1 else " 2 \n")
    assert respond(server, store).text == "2"


@pytest.mark.parametrize("order", [Order.TEACHER_FIRST, Order.STUDENT_FIRST])
def test_the_referees_scores_find_their_side_in_both_orders(server: FakeServer, store: FolderCalls, order: Order) -> None:
    def answer(number: int, request: dict[str, Any]) -> Reply:
        text = request["messages"][-1]["content"]
        first_is_teacher = text.index("the teacher's words") < text.index("the student's words")
        first, second = (9, 4) if first_is_teacher else (4, 9)
        return said(f"Evaluation evidence: one is better.\nScore of the Assistant 1: {first}\nScore of the Assistant 2: {second}")

    server.answer = answer
    teacher, student = Response(instruction="a", text="the teacher's words"), Response(instruction="a", text="the student's words")
    judgement = with_endpoint(
        config_of(server), store, lambda e: EndpointReferee(e, ROLE).judge(INSTRUCTION, teacher=teacher, student=student, order=order)
    )
    assert (judgement.teacher_score, judgement.student_score, judgement.failure) == (9.0, 4.0, "")


def test_a_response_read_alone_gets_its_own_score_and_the_other_none(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: said("Evidence: fine.\nScore of assistant 1: 7")
    teacher, student = Response(instruction="a", text="the teacher's words"), Response(instruction="a", text="the student's words")
    judgement = with_endpoint(
        config_of(server),
        store,
        lambda e: EndpointReferee(e, ROLE).judge(INSTRUCTION, teacher=teacher, student=student, order=Order.STUDENT_ALONE),
    )
    assert (judgement.teacher_score, judgement.student_score, judgement.evidence) == (None, 7.0, "fine.")
    assert judgement.prompt == "pointwise 1"
    assert "the teacher's words" not in str(server.calls[0]["messages"])


def test_several_samples_of_one_judgement_are_calls_of_their_own_and_none_is_a_retry_of_another(
    server: FakeServer, store: FolderCalls
) -> None:
    server.answer = lambda number, request: said("no score" if number == 1 else "Score of assistant 1: 7\nScore of assistant 2: 4")
    one, other = Response(instruction="a", text="x"), Response(instruction="a", text="y")

    async def judge(endpoint: Endpoint) -> list[Judgement]:
        referee = EndpointReferee(endpoint, ROLE, samples=2)
        return [
            await referee.judge(INSTRUCTION, teacher=one, student=other, order=Order.TEACHER_FIRST, referee="fake", sample=sample)
            for sample in range(2)
        ]

    judgements = with_endpoint(config_of(server), store, judge)
    assert [(j.sample, j.referee, j.teacher_score, j.prompt) for j in judgements] == [(n, "fake", 7.0, "joint 1") for n in range(2)]
    assert len(server.calls) == 3


def test_an_unreadable_referee_is_asked_again_and_then_told_with_its_words_and_no_number(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: said("I like them both.")
    one = Response(instruction="a", text="x")
    judgement = with_endpoint(
        config_of(server), store, lambda e: EndpointReferee(e, ROLE).judge(INSTRUCTION, teacher=one, student=one, order=Order.TEACHER_FIRST)
    )
    assert (judgement.teacher_score, judgement.student_score, judgement.evidence) == (None, None, "I like them both.")
    assert judgement.failure
    assert len(server.calls) == ROLE.asks


def test_a_generator_whose_call_fails_gives_no_candidate(server: FakeServer, store: FolderCalls) -> None:
    server.answer = lambda number, request: refused(400, "content filter")
    generator = GeneratorConfig(endpoint="fake")
    assert (
        with_endpoint(config_of(server), store, lambda e: EndpointGenerator(e, generator).create(INSTRUCTION, easy=False, sample=1)) is None
    )


@pytest.mark.parametrize(("per_word", "longest"), [(4.0, 16), (0.0, 1024), (1000.0, 1024)])
def test_a_new_instruction_may_be_so_many_tokens_for_each_word_of_its_parent(
    server: FakeServer, store: FolderCalls, per_word: float, longest: int
) -> None:
    generator = GeneratorConfig(endpoint="fake", tokens_per_word=per_word)
    with_endpoint(config_of(server), store, lambda e: EndpointGenerator(e, generator).create(INSTRUCTION, easy=False, sample=1))
    assert server.calls[0]["max_tokens"] == longest
