"""What a config may not say of its endpoints: nothing that outruns a budget, no key where it would be stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.__main__ import find_config
from trainer.config import EndpointConfig, config_from_dict
from trainer.endpoint_checks import OUR_PARAMETERS
from trainer.errors import ConfigError

KEY = "sk-proj-abcdefghijklmnop"


def refusal(**settings: Any) -> dict[str, str]:
    """What is said of each refused setting of an endpoint."""
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"endpoints": {"teacher": settings}})
    assert KEY not in str(caught.value)
    return {name.removeprefix("endpoints.teacher."): complaint for name, complaint in caught.value.fields.items()}


@pytest.mark.parametrize("value", ["100000", "null", "{}"])
@pytest.mark.parametrize("name", sorted(OUR_PARAMETERS))
def test_an_extra_parameter_cannot_replace_one_that_a_budget_relies_on(name: str, value: str) -> None:
    extra = f'{{"reasoning_effort": "low", "{name}": {value}}}'
    assert refusal(extra=extra) == {"extra": f"{name} cannot be set here: LionWeb sets it for each call."}
    with pytest.raises(ValueError, match="cannot be set here"):
        EndpointConfig(extra=extra).extra_parameters()


def test_the_limits_of_a_reply_are_among_the_parameters_that_we_set() -> None:
    ours = {"max_tokens", "max_completion_tokens", "n", "stream", "messages", "model", "response_format"}
    assert ours <= OUR_PARAMETERS


@pytest.mark.parametrize(
    "extra",
    [
        {"api_key": KEY},
        {"api-key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"apiKey": KEY},
        {"extra_headers": {"X-Api-Key": KEY}},
        {"messages_to_add": [{"deep": [{"access_token": KEY}]}]},
    ],
)
def test_a_key_among_the_extra_parameters_is_refused_for_each_call_is_stored_with_them(extra: dict[str, Any]) -> None:
    assert refusal(extra=json.dumps(extra)).keys() == {"extra"}
    assert "the name of its variable into 'Variable with the key'" in refusal(extra=json.dumps(extra))["extra"]


@pytest.mark.parametrize(
    "extra", ['{"top_k": 20}', '{"temperature": null}', '{"metadata": {"key": "a"}}', '{"logit_bias": {"50256": -100}}']
)
def test_other_extra_parameters_are_taken(extra: str) -> None:
    config = config_from_dict({"endpoints": {"teacher": {"extra": extra}}})
    assert config.endpoints["teacher"].extra_parameters() == json.loads(extra)


@pytest.mark.parametrize("extra", ["[" * 100_000, '{"a": NaN}', '{"a": Infinity}', "low", "[1]"])
def test_extra_parameters_that_are_no_json_object_are_refused_in_words(extra: str) -> None:
    assert refusal(extra=extra).keys() == {"extra"}


@pytest.mark.parametrize(
    "url",
    [
        f"https://api.example.com/v1?api-key={KEY}",
        f"https://api.example.com/v1#{KEY}",
        f"https://user:{KEY}@api.example.com/v1",
        f"https://{KEY}@api.example.com/v1",
        f"https://api.example.com/v1?{KEY}",
    ],
)
def test_a_key_in_the_base_url_is_refused_without_repeating_it(url: str) -> None:
    assert "put the key into the environment" in refusal(base_url=url)["base_url"]


def test_a_base_url_that_is_no_address_is_refused() -> None:
    assert "no address" in refusal(base_url="http://[::1/v1")["base_url"]


@pytest.mark.parametrize("url", ["offline", "https://api.example.com/v1", "http://[::1]:8000/v1", "http://teacher:8010/v1"])
def test_an_address_without_a_key_is_taken(url: str) -> None:
    assert config_from_dict({"endpoints": {"teacher": {"base_url": url}}}).endpoints["teacher"].base_url == url


def test_cached_input_that_is_dearer_than_other_input_is_refused_for_a_budget_could_be_overrun() -> None:
    assert "could cost more than its budget sets aside" in refusal(price_input=1.0, price_cached=1.5)["price_cached"]
    assert refusal(price_cached=0.1).keys() == {"price_cached"}
    assert config_from_dict({"endpoints": {"teacher": {"price_input": 1.0, "price_cached": 1.0}}})


@pytest.mark.parametrize("text", ["endpoints.offline.price_cached=1", 'endpoints.offline.extra={"max_tokens": 9}'])
def test_the_command_line_checks_the_same(text: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoints\.offline\."):
        find_config("demo", seed=None, settings=[text])
