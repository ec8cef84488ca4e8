"""What went wrong with a call to an API, in a sentence that says what to do, sorted by who can act on it."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from trainer.calls import Outcome
from trainer.config import EndpointConfig
from trainer.errors import ConfigError, RequestRefused, ResponseFormatError, TeacherUnavailable
from trainer.keys import without_key
from trainer.text import storable

if TYPE_CHECKING:
    import openai

E = TypeVar("E", bound=BaseException)

LONGEST_REASON = 500
"""Characters of what a server says that are kept."""
CALLS_PATH = "/chat/completions"
GAVE_UP_WAITING = (408, 504, 524)
"""A gateway lost patience with the server behind it, which may have answered, and charged."""
_NO_CREDIT = "insufficient_quota"
_NOT_SUPPORTED = re.compile(
    r"(?:unsupported (?:parameter|value)|unrecognized request argument supplied)[:s]* ['\"`]?([\w.]+)", re.IGNORECASE
)
_TOO_LARGE = re.compile(r"request (is )?too large", re.IGNORECASE)
_NO_TLS = "WRONG_VERSION_NUMBER"
_LATER = "Nothing is lost: calls go on when the endpoint is well again."
_KEEPS_ADDRESS = (
    "A run that has answers from it keeps the address and the model it was launched with, so launch another like it; "
    "one that has none takes up the new ones when it is resumed."
)


def explain(name: str, url: str, config: EndpointConfig, error: Exception, *, key: str = "") -> Exception:
    """The error of a call as a ConfigError, TeacherUnavailable or RequestRefused; one that is none of the API's as it is.

    key: what must not be in the words, whatever the server says.
    """
    problem = _explain(f"Endpoint {name!r} ({url})", config, error, key)
    return problem if problem is error or not key or key not in str(problem) else type(problem)(without_key(str(problem), key))


def _explain(where: str, config: EndpointConfig, error: Exception, key: str) -> Exception:
    import openai

    if isinstance(error, openai.APIConnectionError):
        return _explain_connection(where, config, error)
    if isinstance(error, openai.APIResponseValidationError | json.JSONDecodeError):
        return ConfigError(f"{where} answered something that is not JSON. Check the base URL: for most servers it ends in /v1.")
    if isinstance(error, openai.APIStatusError):
        return _explain_status(where, config, error, key)
    return error


def outcome_of(error: Exception, problem: Exception) -> Outcome:
    """What a call that ended in `error`, explained as `problem`, means for money and pace."""
    import httpx2
    import openai

    if isinstance(problem, ConfigError | ResponseFormatError) or not isinstance(error, openai.APIError):
        return Outcome.REFUSED
    if isinstance(error, openai.RateLimitError):
        return Outcome.LIMITED
    if isinstance(error, openai.APIStatusError) and error.status_code in GAVE_UP_WAITING:
        return Outcome.UNANSWERED
    never_sent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    return Outcome.FAILED if never_sent or isinstance(error, openai.APIStatusError) else Outcome.UNANSWERED


def _explain_connection(where: str, config: EndpointConfig, error: openai.APIConnectionError) -> Exception:
    import httpx2
    import openai

    causes = list(_causes(error))
    refused = _first(causes, ConfigError)
    if refused:  # the guard's own words
        return ConfigError(f"{where} is not called: {refused}")
    if _first(causes, httpx2.ConnectTimeout):
        return TeacherUnavailable(
            f"{where} could not be reached: no connection within {config.connect_timeout_s:g} s. Check the address and the network between."
        )
    if isinstance(error, openai.APITimeoutError):
        return TeacherUnavailable(f"{where} did not answer within {config.timeout_s:g} s. Raise its timeout, or try again later.")
    if _first(causes, socket.gaierror):
        return TeacherUnavailable(f"{where} could not be reached: its host name is not known here. Check the address.")
    if _first(causes, ConnectionRefusedError):
        return TeacherUnavailable(f"{where} could not be reached: nobody listens there. Check the address and that the server runs.")
    tls = _first(causes, ssl.SSLError)
    if tls:
        return _explain_tls(where, tls)
    broken = _first(causes, httpx2.RemoteProtocolError)
    if broken:
        return TeacherUnavailable(f"{where} was reached and gave no whole answer: {broken}. {_LATER}")
    reason = error.__cause__ or error
    words = storable(str(reason)) or type(reason).__name__
    return TeacherUnavailable(f"{where} could not be reached: {words}. Check the address and that the server runs.")


def _explain_tls(where: str, error: ssl.SSLError) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError(
            f"{where} has a certificate that is not trusted: {error.verify_message}. "
            "Correct the host name or the certificate; the file of a certificate authority of your own goes into SSL_CERT_FILE."
        )
    if error.reason == _NO_TLS:
        return ConfigError(f"{where} does not speak HTTPS. If it is meant to be called without, let the base URL begin with http://.")
    return TeacherUnavailable(f"{where} could not be reached: TLS failed ({error.reason or error}). {_LATER}")


def _explain_status(where: str, config: EndpointConfig, error: openai.APIStatusError, key: str) -> Exception:
    status, said = error.status_code, _said(error, key)
    if 300 <= status < 400:
        return ConfigError(f"{where} redirects elsewhere (HTTP {status}). Set the base URL to the final address.")
    if status in (401, 403) and not config.key_env:
        return ConfigError(f"{where} wants a key: {said} Name the environment variable that holds it in the endpoint's settings.")
    if status in (401, 403):
        return ConfigError(f"{where} refused the key in {config.key_env}: {said} Set a valid key, and start again.")
    if status == 402 or (status == 429 and _NO_CREDIT in (error.code, error.type)):
        return ConfigError(f"{where} says that the credit of this key is used up: {said} Add credit there, then resume.")
    if status == 404:
        return ConfigError(
            f"{where} does not know the model {config.model!r} or the path: {said} {_path_hint(config.base_url)}"
            f"Correct the endpoint. {_KEEPS_ADDRESS}"
        )
    if status == 429 and _TOO_LARGE.search(said):
        return RequestRefused(f"{where} will never take this request under its limits: {said}")
    if status == 429:
        return TeacherUnavailable(
            f"{where} answers 429 (too many requests). Lower 'calls at once' or its limits, or resume later. It said: {said}"
        )
    if status >= 500 or status in (408, 409):
        return TeacherUnavailable(f"{where} answers HTTP {status}: {said} {_LATER}")
    parameter = _unsupported_parameter(error)
    if parameter:
        return ConfigError(f"{where} does not take {parameter} as it is sent: {said} {_remedy(parameter, config)}")
    return RequestRefused(f"{where} answered HTTP {status}: {said}")


def _path_hint(url: str) -> str:
    """What is unusual about the path of a base URL; "" where nothing is."""
    path = urlsplit(url).path.rstrip("/")
    if path.endswith(CALLS_PATH):
        return f"The base URL goes on to {CALLS_PATH}, which is added for each call: leave it out. "
    return "" if re.search(r"/v\d", path) else "For most servers the base URL ends in /v1. "


def _unsupported_parameter(error: openai.APIStatusError) -> str:
    """The parameter that the server will not have of any call; "" where it complains of something else."""
    if error.code in ("unsupported_parameter", "unsupported_value") and error.param:
        return storable(str(error.param))[:60]
    found = _NOT_SUPPORTED.search(error.message)
    return found[1] if found else ""


def _remedy(parameter: str, config: EndpointConfig) -> str:
    """Which setting of the endpoint to change. Labels are those of its form."""
    if parameter in ("max_tokens", "max_completion_tokens"):
        other = "max_tokens" if config.length_parameter == "max_completion_tokens" else "max_completion_tokens"
        return f"Set 'Name of the length limit' to {other}."
    if parameter == "seed":
        return "Switch off 'Send the sample number as `seed`'."
    if parameter.startswith("response_format"):
        return "Set 'Structured output' to text."
    return f"Put {{\"{parameter}\": null}} into 'Extra parameters' to leave it out."


def _said(error: openai.APIStatusError, key: str) -> str:
    """What the server gave as its reason, as a sentence. The client knows one form only; of any other the body is shown."""
    if (isinstance(error.body, str) and error.body.lstrip()[:1] == "<") or "<html" in error.message[:200].lower():
        missing = "; is /v1 missing from the address?" if error.status_code < 500 else "."
        return f"It answered with a web page (HTTP {error.status_code}){missing}"
    reason = error.message.partition(" - ")[2] or str(error.body or "it gave no reason")
    words = storable(without_key(reason.strip(), key))[:LONGEST_REASON]
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, groups opened. The HTTP library takes away some causes, and leaves their context."""
    yield error
    inner = [*(error.exceptions if isinstance(error, BaseExceptionGroup) else ()), error.__cause__ or error.__context__]
    for cause in inner:
        if cause is not None:
            yield from _causes(cause)


def _first(errors: list[BaseException], kind: type[E]) -> E | None:
    return next((error for error in errors if isinstance(error, kind)), None)
