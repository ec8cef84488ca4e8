"""The HTTP transport that asks an AddressGuard before it connects (see `trainer.addresses.guarded_transport`)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable

import httpcore2
import httpx2

from trainer.addresses import AddressGuard
from trainer.errors import ConfigError


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """httpx2's own transport over a pool whose connections are guarded.

    Its `__init__` is left out on purpose: it does nothing but make the pool, and makes no guarded one. Should httpx2 ever keep its
    pool elsewhere, a call fails; it does not go past the guard.
    """

    def __init__(self, guard: AddressGuard, *, limits: httpx2.Limits) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_GuardedBackend(guard),
        )


class _GuardedBackend(httpcore2.AnyIOBackend):
    """Resolves a host once, has all of its addresses checked, and connects to one of these. TLS is still checked against the name."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises ConnectTimeout or ConnectError; one that comes of a ConfigError is the guard's refusal."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        addresses = await _resolve(host, port, timeout)
        try:
            self._guard.check(host, addresses)
        except ConfigError as error:
            raise httpcore2.ConnectError(str(error)) from error
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:  # an address that is silent must not use up the time of the others
                return await super().connect_tcp(address, port, _share(ends_at, left), local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if left == 1:
                    raise
        raise AssertionError("a host that resolves has an address")


async def _resolve(host: str, port: int, timeout_s: float | None) -> list[str]:
    """The addresses of a host, in the order in which the system would try them."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(timeout_s):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout(f"no address for {host} in time") from error
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def _share(ends_at: float | None, parts: int) -> float | None:
    """The time that one of so many attempts may take, in seconds."""
    return None if ends_at is None else max(0.0, ends_at - time.monotonic()) / parts
