"""Trying an endpoint: whatever a server does, a sentence comes of it that says what to do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.http_server import HTML, Answer, Asked, Server, refused, running, said
from trainer import endpoint_test
from trainer.addresses import AddressGuard
from trainer.calls import Outcome
from trainer.config import EndpointConfig
from trainer.endpoint_test import Tried, try_endpoint

GUARD = AddressGuard.from_settings(["127.0.0.1"])


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as it:
        yield it


def tried(url: str, *, environ: dict[str, str] | None = None, guard: AddressGuard | None = GUARD, **values: Any) -> Tried:
    config = EndpointConfig(base_url=url, model="big", key_env="", timeout_s=5, price_input=1, price_output=2)
    return asyncio.run(try_endpoint(replace(config, **values), name="mine", guard=guard, environ=environ or {}))


# An endpoint that works


def test_one_tiny_call_tells_that_it_works_and_what_it_cost(server: Server) -> None:
    came = tried(server.url, key_env="BIG_KEY", environ={"BIG_KEY": "s3cret"})
    assert came.ok
    assert came.words == "It answered \N{LEFT DOUBLE QUOTATION MARK}yes\N{RIGHT DOUBLE QUOTATION MARK}."
    assert (came.served_model, came.tells_usage, came.structured, came.batches, came.advice) == ("big-0301", True, None, None, ())
    assert came.nanodollars == 10 * 1000 + 2 * 2000
    assert came.latency_s is not None
    assert 0 < came.latency_s < 5
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer s3cret"
    assert asked.data["max_tokens"] <= 256


def test_it_asks_as_a_run_would(server: Server) -> None:
    tried(server.url, length_parameter="max_completion_tokens", extra='{"reasoning_effort": "low", "temperature": null}', send_seed=True)
    sent = server.asked[0].data
    assert "temperature" not in sent
    assert "max_tokens" not in sent
    assert (sent["reasoning_effort"], sent["seed"], sent["model"]) == ("low", 0, "big")


def test_it_tells_the_limits_that_the_server_tells(server: Server) -> None:
    limits = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"}
    server.answer = lambda asked: replace(said("yes"), headers={"Content-Type": "application/json", **limits})
    told = tried(server.url).told.requests
    assert told is not None
    assert (told.limit, told.remaining) == (60, 59)


@pytest.mark.parametrize("structured", ["json_schema", "json_object"])
def test_structured_output_is_tried_where_the_endpoint_is_to_use_it(server: Server, structured: str) -> None:
    server.answer = lambda asked: said('{"answer": "yes"}')
    came = tried(server.url, structured=structured)
    assert came.structured is True
    assert [asked.data.get("response_format", {}).get("type") for asked in server.asked] == [None, structured]
    assert came.nanodollars == 2 * (10 * 1000 + 2 * 2000)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (refused(400, "response_format is not supported"), "response_format is not supported"),
        (said("Sure! yes"), "it answered 'Sure! yes'"),
        (said('["yes"]'), "it answered"),
    ],
)
def test_structured_output_that_does_not_work_is_said_and_the_endpoint_still_works(server: Server, answer: Answer, why: str) -> None:
    server.answer = lambda asked: answer if "response_format" in asked.data else said("yes")
    came = tried(server.url, structured="json_schema")
    assert (came.ok, came.structured) == (True, False)
    assert "set it to text" in came.advice[0]
    assert why in came.advice[0]


def test_batches_are_asked_for_where_the_endpoint_is_to_offer_them(server: Server) -> None:
    server.answer = lambda asked: Answer(body={"data": []}) if asked.method == "GET" else said("yes")
    came = tried(server.url, batch_api=True)
    assert (came.batches, came.advice) == (True, ())
    assert server.asked[1].path == "/v1/batches?limit=1"


@pytest.mark.parametrize("answer", [refused(404), Answer(200, b"<html>", HTML), Answer(body=[1]), Answer(302, headers={"Location": "/x"})])
def test_batches_that_are_not_offered_are_said(server: Server, answer: Answer) -> None:
    server.answer = lambda asked: answer if asked.method == "GET" else said("yes")
    came = tried(server.url, batch_api=True)
    assert (came.ok, came.batches) == (True, False)
    assert "switch off 'Offers the Batch API'" in came.advice[0]


@pytest.mark.parametrize(
    ("answer", "values", "advice"),
    [
        (said("yes", usage=None), {}, "tells no token counts"),
        (said(""), {}, "The answer is empty"),
        (said("yes"), {"price_input": 0, "price_output": 0}, "No prices are set"),
    ],
)
def test_what_could_be_better_is_said(server: Server, answer: Answer, values: dict[str, Any], advice: str) -> None:
    server.answer = lambda asked: answer
    came = tried(server.url, **values)
    assert came.ok
    assert advice in " ".join(came.advice)


def test_what_a_server_says_is_cut_and_made_fit_to_be_kept(server: Server) -> None:
    server.answer = lambda asked: said("y\x00e\ud83d " + "long " * 1000, model="m" * 1000)
    came = tried(server.url)
    assert len(came.words) < 110
    assert len(came.served_model) == 200
    assert "\x00" not in came.words
    came.words.encode()


# Endpoints that do not


@pytest.mark.parametrize(
    ("path", "hint"),
    [("", "For most servers the base URL ends in /v1"), ("/v1/chat/completions", "leave it out"), ("/v1", "Correct the endpoint")],
)
def test_a_path_that_leads_nowhere_is_told_with_what_is_unusual_about_it(server: Server, path: str, hint: str) -> None:
    server.answer = lambda asked: refused(404, "nothing here")
    words = tried(f"http://127.0.0.1:{server.port}{path}").words
    assert hint in words
    assert ("For most servers" in words) is (path == "")


SUPPORTED = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
ONLY_ONE = "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported."
QUOTA = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(401, "Incorrect API key provided"), ["wants a key", "Incorrect API key", "Name the environment variable"]),
        (refused(403, "not yours"), ["wants a key"]),
        (refused(404, "no such model"), ["does not know the model 'big' or the path", "no such model", "Correct the endpoint"]),
        (refused(429, "slow down"), ["429 (too many requests)", "Lower 'calls at once'", "slow down"]),
        (refused(429, QUOTA, code="insufficient_quota"), ["the credit of this key is used up", "Add credit"]),
        (refused(429, QUOTA, type="insufficient_quota"), ["the credit of this key is used up"]),
        (refused(402, "Insufficient Balance"), ["the credit of this key is used up", "Insufficient Balance"]),
        (
            refused(400, SUPPORTED, code="unsupported_parameter", param="max_tokens"),
            ["'Name of the length limit' to max_completion_tokens"],
        ),
        (refused(400, SUPPORTED), ["does not take max_tokens", "'Name of the length limit' to max_completion_tokens"]),
        (refused(400, ONLY_ONE, code="unsupported_value", param="temperature"), ['{"temperature": null}', "Extra parameters"]),
        (refused(400, "Unrecognized request argument supplied: top_p"), ['{"top_p": null}']),
        (refused(400, "context length"), ["answered HTTP 400", "context length"]),
        (refused(500, "boom"), ["HTTP 500", "boom", "when the endpoint is well again"]),
        (refused(503, "busy"), ["HTTP 503", "busy"]),
        (Answer(502, b"<html><h1>Bad Gateway</h1></html>", HTML), ["HTTP 502", "a web page"]),
        (Answer(404, b"<!doctype html><html>", HTML), ["a web page", "is /v1 missing"]),
        (Answer(200, b"<html>hello</html>", HTML), ["not a chat completion", "ends in /v1", "<html>hello"]),
        (Answer(200, b"{not json"), ["not a chat completion", "{not json"]),
        (Answer(200, b"\xff\xfe"), ["not a chat completion"]),
        (Answer(200, b"[" * 100_000), ["not a chat completion"]),
        (Answer(200, b""), ["not a chat completion"]),
        (Answer(body={}), ["not a chat completion"]),
        (Answer(body={"choices": []}), ["not a chat completion", '"choices": []']),
        (Answer(body={"choices": [{"message": None}]}), ["not a chat completion"]),
        (Answer(body=["yes"]), ["not a chat completion"]),
        (Answer(302, headers={"Location": "http://127.0.0.1:1/"}), ["redirects elsewhere (HTTP 302)", "final address"]),
    ],
)
def test_a_server_that_does_not_do_is_told_in_a_sentence(server: Server, answer: Answer, words: list[str]) -> None:
    server.answer = lambda asked: answer
    came = tried(server.url, structured="json_schema", batch_api=True)
    assert not came.ok
    assert came.words.startswith(f"Endpoint 'mine' ({server.url}) ")
    for word in words:
        assert word in came.words
    assert len(server.asked) == 1, "what failed is not asked again, nor a redirect followed"
    assert came.nanodollars == 0


@pytest.mark.parametrize(("sent", "other"), [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")])
def test_the_advice_on_the_length_limit_names_the_other_one(server: Server, sent: str, other: str) -> None:
    server.answer = lambda asked: refused(400, f"Unsupported parameter: '{sent}'", code="unsupported_parameter", param=sent)
    assert f"'Name of the length limit' to {other}" in tried(server.url, length_parameter=sent).words


def test_a_variable_that_is_not_set_is_named_and_nothing_called(server: Server) -> None:
    came = tried(server.url, key_env="BIG_KEY")
    assert not came.ok
    assert "BIG_KEY is not set" in came.words
    assert server.asked == []


@pytest.mark.parametrize("key", ["sk-\n", " sk-1", "sk-\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_value_that_is_no_key_is_told_without_being_shown(server: Server, key: str) -> None:
    came = tried(server.url, key_env="BIG_KEY", environ={"BIG_KEY": key})
    assert "The value of BIG_KEY cannot be a key" in came.words
    assert key.strip() not in came.words
    assert server.asked == []


@pytest.mark.parametrize("answer", [refused(401, "Incorrect API key: s3cret"), said("s3cret", model="s3cret"), Answer(200, b"s3cret")])
def test_a_server_that_says_the_key_back_does_not_get_it_onto_a_page(server: Server, answer: Answer) -> None:
    server.answer = lambda asked: answer
    came = tried(server.url, key_env="BIG_KEY", environ={"BIG_KEY": "s3cret"}, structured="json_object")
    assert "(the key)" in came.words
    assert not any("s3cret" in text for text in (came.words, came.served_model, *came.advice))


def test_a_private_address_is_refused_with_what_to_set(server: Server) -> None:
    came = tried(server.url, guard=AddressGuard())
    assert "is not called: 127.0.0.1 is a private address" in came.words
    assert "LIONWEB_PRIVATE_HOSTS" in came.words
    assert server.asked == []
    assert came.done[0].outcome is Outcome.REFUSED


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        came = tried(f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    assert "nobody listens there" in came.words
    assert came.done[0].outcome is Outcome.FAILED


@pytest.mark.parametrize("guard", [GUARD, None])
def test_a_name_that_is_not_known(guard: AddressGuard | None) -> None:
    assert "its host name is not known here" in tried("http://nowhere.invalid/v1", guard=guard).words


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/v1", "nothing", ""])
def test_what_is_no_address(url: str) -> None:
    came = tried(url)
    assert not came.ok
    assert came.words.startswith("The base URL is no address: ")


def test_a_server_without_tls_called_by_https(server: Server) -> None:
    came = tried(server.url.replace("http:", "https:"))
    assert "does not speak HTTPS" in came.words
    assert "begin with http://" in came.words


def test_a_silent_server_is_given_up_after_its_timeout_and_may_have_been_paid(server: Server) -> None:
    server.go.clear()
    came = tried(server.url, timeout_s=1)
    assert "did not answer within 1 s. Raise its timeout" in came.words
    (done,) = came.done
    assert done.outcome is Outcome.UNANSWERED
    assert done.call.most_nanodollars > 0


def test_a_test_waits_no_longer_than_a_person_does(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_test, "LONGEST_S", 0.3)
    server.go.clear()
    came = tried(server.url, timeout_s=120)
    assert "did not answer within 0.3 s. A test waits no longer; a run waits 120 s" in came.words


def test_all_requests_of_a_test_share_its_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_test, "LONGEST_S", 1.0)

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET" or "response_format" in asked.data:
            server.go.clear()
            server.go.wait(10)
        return said("yes")

    server.answer = answer
    came = tried(server.url, structured="json_object", batch_api=True)
    assert (came.ok, came.structured, came.batches) == (True, False, False)
    assert "did not answer" in came.advice[0]


def test_a_connection_that_is_cut_after_the_call_was_sent_may_have_been_paid(server: Server) -> None:
    def cut(asked: Asked) -> Answer:
        raise ConnectionResetError

    server.answer = cut
    came = tried(server.url)
    assert "was reached and gave no whole answer" in came.words
    assert came.done[0].outcome is Outcome.UNANSWERED
