"""What a reply is worth: whether it is whole, and what it can cost at most before it is there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import completion
from trainer.config import EndpointConfig, RoleConfig
from trainer.prices import cost
from trainer.records import NO_REASON, Completion
from trainer.wire import call_of, completion_key, read_reply, request_of

CONFIG = EndpointConfig(price_input=1.0, price_output=2.0)
MESSAGES = [{"role": "user", "content": "Say hello."}]


def read(finish_reason: Any, *, told: bool = True) -> Completion:
    """The completion in a reply that ended so."""
    request = request_of("fake", CONFIG, RoleConfig(), MESSAGES)
    choice = {"message": {"content": "Hello."}, **({"finish_reason": finish_reason} if told else {})}
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    return read_reply(
        call_of(completion_key(request), "teacher", request, CONFIG), {"choices": [choice], "usage": usage}, CONFIG, latency_s=1
    )


@pytest.mark.parametrize("reason", ["stop", "STOP", " stop", "end_turn", "eos", "eos_token", "stop_sequence", "COMPLETE"])
def test_a_reply_that_the_model_ended_by_itself_is_whole(reason: str) -> None:
    assert (read(reason).good, read(reason).defect) == (True, "")


@pytest.mark.parametrize(
    "reason",
    [
        "length",
        "max_tokens",
        "model_length",
        "content_filter",
        "safety",
        "error",
        "abort",
        "insufficient_system_resource",
        "tool_calls",
        "recitation",
        "a reason of next year",
    ],
)
def test_a_reply_that_ended_in_another_way_is_not_whole(reason: str) -> None:
    assert not read(reason).good
    assert read(reason).defect == f"The reply was cut off at 2 tokens ({reason})."


@pytest.mark.parametrize("reason", [None, "", False, 0])
def test_a_reply_whose_server_gives_no_reason_is_not_known_to_be_whole(reason: Any) -> None:
    assert read(reason).finish_reason == read(None, told=False).finish_reason == NO_REASON
    assert read(reason).defect == "The reply may be cut off: the server gives no finish_reason with its 2 tokens."


def test_what_is_kept_of_a_reply_says_whether_it_is_whole() -> None:
    assert completion("Hello.").good
    assert not completion("Hello.", finish_reason=NO_REASON).good


@pytest.mark.parametrize("extra", ["", '{"tools": [{"name": "' + "x" * 5000 + '"}]}'])
@pytest.mark.parametrize("structured", ["text", "json_schema"])
def test_the_most_a_call_can_cost_covers_what_goes_along_with_its_messages(extra: str, structured: str) -> None:
    config = EndpointConfig(price_input=1.0, price_output=2.0, extra=extra, structured=structured)
    schema = {"type": "object", "description": "y" * 3000}
    request = request_of("fake", config, RoleConfig(max_tokens=10), MESSAGES, schema=schema)
    sent = len(MESSAGES[0]["content"]) + len(extra) + (3000 if structured == "json_schema" else 0)
    most = call_of(completion_key(request), "referee", request, config).most_nanodollars
    assert most >= cost(config, prompt_tokens=sent, completion_tokens=10)
