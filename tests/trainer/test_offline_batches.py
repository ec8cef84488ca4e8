"""The Batch API of the offline teacher: through OpenAI's own client where it is the shape that matters, else by a clock of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.asking import CLIENT
from tests.stack import wait_until
from trainer import prompts
from trainer.demo.batch_lines import ENDPOINT, MOST_PROBLEMS
from trainer.demo.batches import Batches
from trainer.demo.chat import MODEL
from trainer.demo.http import FormField, Refused, read_form
from trainer.demo.knobs import Knobs
from trainer.demo.ledger import Ledger
from trainer.demo.process import OfflineTeacher
from trainer.records import Instruction

NOW = 1_700_000_000.0


def line(custom_id: str, /, **changes: Any) -> bytes:
    messages = prompts.teacher_messages(Instruction(key=custom_id, text="reverse: badc"))
    request = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"model": MODEL, "messages": messages, "seed": custom_id}}
    return json.dumps(request | changes).encode()


def lines_of(count: int) -> bytes:
    return b"\n".join(line(f"c{number}") for number in range(count))


class Desk:
    """Batches under knobs, with their ledger and a clock that the test sets; a batch takes 100 s."""

    def __init__(self, **knobs: Any) -> None:
        self.ledger = Ledger()
        self.batches = Batches(Knobs(batch_s=100, **knobs), self.ledger)

    def submit(self, content: bytes, *, at_s: float = 0.0, **options: Any) -> str:
        file = self.batches.add_file({"purpose": FormField(b"batch"), "file": FormField(content, "in.jsonl")}, NOW)
        wish = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h", **options}
        return str(self.batches.add(json.dumps(wish).encode(), NOW + at_s)["id"])

    def shown(self, batch_id: str, at_s: float) -> dict[str, Any]:
        return self.batches.shown(batch_id, NOW + at_s)

    def results(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """The lines of a result file by their custom_id."""
        if file_id is None:
            return {}
        read = [json.loads(text) for text in self.batches.file(file_id).content.split(b"\n") if text]
        return {result["custom_id"]: result for result in read}


# Through OpenAI's client --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher() -> Iterator[OfflineTeacher]:
    with OfflineTeacher(Knobs(batch_s=0.5)) as running:
        yield running


@pytest.fixture(scope="module")
def client(teacher: OfflineTeacher) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=teacher.base_url, api_key="none", http_client=httpx.Client(trust_env=False)) as client:
        yield client


def submit(client: openai.OpenAI, content: bytes, **metadata: str) -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata)


def test_a_batch_goes_from_file_to_answers(teacher: OfflineTeacher, client: openai.OpenAI) -> None:
    before = teacher.stats()
    batch = submit(client, lines_of(3), run="7")
    assert (batch.status, batch.metadata, batch.output_file_id) == ("validating", {"run": "7"}, None)
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=20, what="the batch")
    done = client.batches.retrieve(batch.id)
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 3, 0)
    assert (done.error_file_id, done.errors) == (None, None)
    assert done.output_file_id is not None
    results = [json.loads(text) for text in client.files.content(done.output_file_id).text.splitlines()]
    assert [result["custom_id"] for result in results] == ["c0", "c1", "c2"]
    assert {result["response"]["body"]["choices"][0]["message"]["content"] for result in results} == {"cdab"}
    assert {(result["response"]["status_code"], result["error"]) for result in results} == {(200, None)}
    told = sum(result["response"]["body"]["usage"]["prompt_tokens"] for result in results)
    after = teacher.stats()
    grown = {name: after[name] - before[name] for name in ("batch_calls", "charged", "prompt_tokens", "answered")}
    assert grown == {"batch_calls": 3, "charged": 3, "prompt_tokens": told, "answered": 0}


def test_batches_are_listed_newest_first_a_page_at_a_time(client: openai.OpenAI) -> None:
    made = [submit(client, lines_of(1), number=str(number)).id for number in range(5)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:2:-1]
    assert page.has_more
    assert [batch.id for batch in client.batches.list(limit=2, after=made[3]).data] == [made[2], made[1]]
    assert [batch.id for batch, _ in zip(client.batches.list(limit=2), range(5), strict=False)] == made[::-1]


def test_a_file_says_what_it_is(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    told = client.files.retrieve(file.id)
    assert (told.bytes, told.filename, told.purpose, told.status) == (3, "in.jsonl", "batch", "processed")
    assert client.files.content(file.id).content == b"{}\n"


def test_a_batch_that_is_over_cannot_be_cancelled(client: openai.OpenAI) -> None:
    batch = submit(client, lines_of(1))
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=20, what="the batch")
    with pytest.raises(openai.ConflictError, match="is completed cannot be cancelled"):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/files/file-none", 404),
        ("GET", "/files/file-none/content", 404),
        ("GET", "/batches/none", 404),
        ("GET", "/batches?after=none", 404),
        ("GET", "/batches?limit=0", 400),
        ("GET", "/batches?limit=x", 400),
        ("POST", "/batches/none/cancel", 404),
        ("POST", "/files", 400),
        ("POST", "/batches", 400),
        ("DELETE", "/batches/none", 404),
    ],
)
def test_what_is_not_there_or_makes_no_sense_is_refused(teacher: OfflineTeacher, method: str, path: str, status: int) -> None:
    reply = CLIENT.request(method, f"{teacher.base_url}{path}")
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


# By the clock -------------------------------------------------------------------------------------------------------------------------


def test_a_batch_passes_through_its_states_and_answers_its_lines_evenly() -> None:
    desk = Desk()
    batch = desk.submit(lines_of(8))
    seen = [(desk.shown(batch, at_s)["status"], desk.shown(batch, at_s)["request_counts"]["completed"]) for at_s in (0, 9, 11, 50, 91, 101)]
    assert seen == [("validating", 0), ("validating", 0), ("in_progress", 0), ("in_progress", 4), ("finalizing", 8), ("completed", 8)]
    told = desk.shown(batch, 500)
    assert [told[f"{moment}_at"] - NOW for moment in ("created", "in_progress", "finalizing", "completed")] == [0, 10, 90, 100]


def test_a_cancelled_batch_keeps_what_it_had_answered_and_says_nothing_of_the_rest() -> None:
    desk = Desk()
    batch = desk.submit(lines_of(8))
    assert desk.batches.cancel(batch, NOW + 50)["status"] == "cancelling"
    told = desk.shown(batch, 500)
    assert (told["status"], told["error_file_id"]) == ("cancelled", None)
    assert list(desk.results(told["output_file_id"])) == ["c0", "c1", "c2", "c3"]
    assert desk.ledger.stats()["charged"] == 4


def test_lines_that_fail_are_in_the_error_file_and_come_through_the_next_time() -> None:
    desk = Desk(batch_failed=0.5)
    told = desk.shown(desk.submit(lines_of(20)), 100)
    failed = desk.results(told["error_file_id"])
    assert told["status"] == "completed"
    assert told["request_counts"] == {"total": 20, "completed": 20 - len(failed), "failed": len(failed)}
    assert 0 < len(failed) < 20
    assert {(result["response"]["status_code"], result["error"]) for result in failed.values()} == {(500, None)}
    again = desk.shown(desk.submit(b"\n".join(line(custom_id) for custom_id in failed)), 100)
    assert desk.results(again["output_file_id"]).keys() == failed.keys()
    assert desk.ledger.stats()["charged"] == 20


def test_lines_left_undone_when_a_batch_expires_are_told_and_not_charged() -> None:
    desk = Desk(batch_expires=0.5)
    told = desk.shown(desk.submit(lines_of(20)), 100)
    undone = desk.results(told["error_file_id"])
    assert (told["status"], told["expired_at"]) == ("expired", int(NOW + 100))
    assert {(result["response"], result["error"]["code"]) for result in undone.values()} == {(None, "batch_expired")}
    assert desk.results(told["output_file_id"]).keys() == {f"c{number}" for number in range(20)} - undone.keys()
    assert desk.ledger.stats()["charged"] == 20 - len(undone)


def test_lines_that_expire_again_and_again_are_all_done_in_the_end() -> None:
    desk, left = Desk(batch_expires=0.5), {f"c{number}" for number in range(20)}
    for _ in range(30):
        told = desk.shown(desk.submit(b"\n".join(line(custom_id) for custom_id in sorted(left))), 100)
        left -= desk.results(told["output_file_id"]).keys()
        if not left:
            break
    assert not left
    assert desk.ledger.stats()["charged"] == 20


def test_a_line_that_cannot_be_answered_fails_alone() -> None:
    desk = Desk()
    told = desk.shown(desk.submit(line("good") + b"\n" + line("bad", body={"model": MODEL, "messages": "hello"})), 100)
    assert desk.results(told["output_file_id"]).keys() == {"good"}
    bad = desk.results(told["error_file_id"])["bad"]["response"]
    assert (bad["status_code"], bad["body"]["error"]["code"]) == (400, "invalid_messages")


def test_a_batch_refused_on_purpose_fails_its_validation_and_is_not_charged() -> None:
    desk = Desk(batch_refused=True)
    told = desk.shown(desk.submit(lines_of(3)), 100)
    assert (told["status"], told["output_file_id"], told["error_file_id"]) == ("failed", None, None)
    assert told["errors"]["data"][0]["code"] == "refused"
    assert desk.ledger.stats()["charged"] == 0


def test_a_batch_of_more_tokens_than_may_wait_at_once_fails_until_others_are_done() -> None:
    desk = Desk(batch_tokens=100)  # a line has about 20
    first, second = desk.submit(lines_of(4)), desk.submit(lines_of(4), at_s=50)
    failed = desk.shown(second, 100)
    assert (failed["status"], failed["errors"]["data"][0]["code"]) == ("failed", "token_limit_exceeded")
    assert desk.shown(first, 100)["status"] == "completed"
    assert desk.shown(desk.submit(lines_of(4), at_s=100), 200)["status"] == "completed"
    assert desk.ledger.stats()["charged"] == 8


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"\n\n", "empty_file", None),
        (line("a") + b"\n{", "invalid_json_line", 2),
        (b"[1]", "invalid_request", 1),
        (line("a", body=None), "invalid_request", 1),
        (line("a", custom_id=7), "missing_required_parameter", 1),
        (line("a") + b"\n" + line("a"), "duplicate_custom_id", 2),
        (line("a", url="/v1/embeddings"), "mismatched_endpoint", 1),
        (line("a", method="GET"), "mismatched_endpoint", 1),
        (line("a", body={"model": "gpt-5", "messages": []}), "model_not_found", 1),
        (b"{}\n" * 50_001, "too_many_tasks", None),
    ],
)
def test_a_file_with_any_fault_fails_as_a_whole_and_says_where(content: bytes, code: str, number: int | None) -> None:
    desk = Desk()
    batch = desk.submit(content)
    assert desk.shown(batch, 0)["errors"] is None
    told = desk.shown(batch, 100)
    assert (told["status"], told["failed_at"]) == ("failed", int(NOW + 10))
    assert (told["errors"]["data"][0]["code"], told["errors"]["data"][0]["line"]) == (code, number)


def test_of_many_faults_the_first_are_told() -> None:
    desk = Desk()
    assert len(desk.shown(desk.submit(b"{\n" * 100), 100)["errors"]["data"]) == MOST_PROBLEMS


@pytest.mark.parametrize(
    "changes",
    [{"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}, {"metadata": {"a": 1}}, {"metadata": []}, {"input_file_id": 3}],
)
def test_a_wish_that_is_no_batch_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        Desk().submit(lines_of(1), **changes)


@given(content=st.binary(max_size=300), name=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20))
def test_a_form_gives_back_the_very_bytes_that_were_sent(content: bytes, name: str) -> None:
    request = httpx.Request("POST", "http://here/", data={"purpose": "batch"}, files={"file": (name, content)})
    form = read_form(request.headers["content-type"].encode(), request.read())
    assert (form["purpose"].content, form["file"].content, form["file"].filename) == (b"batch", content, name)
