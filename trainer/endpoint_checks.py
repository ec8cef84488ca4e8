"""What an endpoint's settings may not say, since money or a key would go where nobody looks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from trainer.config import EndpointConfig

LENGTH_PARAMETERS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"})
OUR_PARAMETERS = LENGTH_PARAMETERS | {"messages", "model", "n", "best_of", "stream", "stream_options", "seed", "response_format"}
"""Parameters of a call that no endpoint's extra ones may replace: a budget sets aside what a call can cost by them."""

KEY_NAMES = frozenset(
    {"apikey", "apitoken", "accesstoken", "authtoken", "authorization", "bearer", "secretkey", "subscriptionkey", "xapikey"}
)
"""Names under which servers take a key, without the marks between their words."""

USE_THE_VARIABLE = "put the key into the environment, and the name of its variable into 'Variable with the key'."


def refused_settings(config: EndpointConfig) -> Iterator[tuple[str, str]]:
    """The settings of an endpoint that do not go, each with a sentence a form can show."""
    if complaint := _about_url(config.base_url):
        yield "base_url", complaint
    if config.price_cached > config.price_input:
        yield (
            "price_cached",
            f"Cached input at ${config.price_cached:g} is dearer than other input at ${config.price_input:g}, and a call could cost more "
            "than its budget sets aside for it. Give the lower price, or 0 where there is none.",
        )
    try:
        read_extra(config.extra)
    except ValueError as error:
        yield "extra", str(error)


def read_extra(text: str) -> dict[str, Any]:
    """The extra parameters of an endpoint as data. Raises ValueError, with a sentence a form can show, where they do not go."""
    if not text.strip():
        return {}
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"This is not JSON: {error}.") from None
    except RecursionError:
        raise ValueError("This JSON is nested too deeply.") from None
    if not isinstance(data, dict):
        raise ValueError('Give a JSON object, for instance {"reasoning_effort": "low"}.')
    if taken := sorted(OUR_PARAMETERS & data.keys()):
        raise ValueError(f"{', '.join(taken)} cannot be set here: LionWeb sets it for each call.")
    if keys := sorted({name for name in _names(data) if _is_key_name(name)}):
        raise ValueError(f"{', '.join(keys)} cannot be set here, since every call is stored with its parameters: {USE_THE_VARIABLE}")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _about_url(url: str) -> str:
    """What is wrong with a base URL, without a word of it: it may hold a key."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "This is no address. Give one that begins with http:// or https://."
    if parts.username is not None or parts.password is not None:
        return f"No name or password in the address, which is stored with every call: {USE_THE_VARIABLE}"
    if "?" in url or "#" in url:
        return f"Nothing after a ? or # in the address, which is stored with every call. If it is a key, {USE_THE_VARIABLE}"
    return ""


def _names(data: dict[str, Any]) -> Iterator[str]:
    """The names of all objects in it, however deep."""
    waiting: list[Any] = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_key_name(name: str) -> bool:
    return "".join(filter(str.isalnum, name)).casefold() in KEY_NAMES
