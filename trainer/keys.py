"""API keys: taken from the environment by name, checked before they are sent, and taken out of what servers say."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config import EndpointConfig
from trainer.errors import ConfigError

HIDDEN = "(the key)"
NO_KEY = "none"
"""What is sent where an endpoint takes no key: the header may not be empty."""


def key_of(name: str, config: EndpointConfig, environ: Mapping[str, str]) -> str:
    """The key of an endpoint. Raises ConfigError where its variable is not set, or holds what no header can carry."""
    if not config.key_env:
        return NO_KEY
    key = environ.get(config.key_env, "")
    if not key:
        raise ConfigError(
            f"Endpoint {name!r} takes its key from the environment variable {config.key_env}, which is not set. "
            "Set it where the teacher worker starts (for instance in .env), then start again and resume."
        )
    problem = malformed(key, config)
    if problem:
        raise ConfigError(problem)
    return key


def malformed(key: str, config: EndpointConfig) -> str:
    """What makes a value unfit to be a key, without the value; else ""."""
    if key.isascii() and key.isprintable() and key == key.strip():
        return ""
    return f"The value of {config.key_env} cannot be a key: it has a space around it, a line break or a letter beyond ASCII. Set it again."


def without_key(text: str, key: str) -> str:
    """The same text without the key: some servers say it back."""
    return text.replace(key, HIDDEN) if key and key != NO_KEY else text
