"""The HTTP transport of all calls: aiohttp under the OpenAI client, connecting to nothing that an AddressGuard refuses.

httpx2's own transport looks through all of its connections twice a call, which at 64 calls at once takes longer than the call
itself. aiohttp's takes them from a stack (docs/decisions/0005-http-transport.md).
"""

from __future__ import annotations

import io
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx2
from aiohttp.abc import AbstractResolver, ResolveResult

from trainer.addresses import AddressGuard
from trainer.errors import ConfigError

CHUNK_BYTES = 64 * 1024
LARGEST_HEADER_BYTES, MOST_HEADERS = 64 * 1024, 1000
"""Gateways send long ones, and a reply that is not read is one that was paid."""
LARGEST_WRITE_BYTES = 1 << 20
SET_BY_HTTPX = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Transport(httpx2.AsyncBaseTransport):
    """Make it inside the event loop that makes the calls. Proxies named in the environment are not used, redirects not followed.

    A call to an address that is not allowed fails as a connection does (httpx2.ConnectError), with the guard's words;
    `trainer.api_errors.explain` makes a ConfigError of it.
    """

    def __init__(self, guard: AddressGuard | None, *, limits: httpx2.Limits) -> None:
        """guard: which addresses may be connected to; none is no limit."""
        door = _Door(guard) if guard else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=httpx2.create_ssl_context(),
                limit=limits.max_connections or 0,
                keepalive_timeout=limits.keepalive_expiry,
                resolver=door or aiohttp.ThreadedResolver(),
                socket_factory=door.socket if door else None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=SET_BY_HTTPX,
            max_line_size=LARGEST_HEADER_BYTES,
            max_field_size=LARGEST_HEADER_BYTES,
            max_headers=MOST_HEADERS,
            auto_decompress=False,  # httpx2 does
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        timeout = request.extensions.get("timeout", {})
        body = await request.aread()
        with _errors_of_httpx(request):
            response = await self._session.request(
                request.method,
                str(request.url),
                headers=request.headers.multi_items(),
                data=io.BytesIO(body) if len(body) > LARGEST_WRITE_BYTES else body or None,
                allow_redirects=False,
                # From the wish for a connection until it is there, the look-up of its name included.
                timeout=aiohttp.ClientTimeout(total=None, connect=timeout.get("connect"), sock_read=timeout.get("read")),
            )
        return httpx2.Response(response.status, headers=response.raw_headers, stream=_Body(response, request), request=request)

    async def aclose(self) -> None:
        await self._session.close()


class _Body(httpx2.AsyncByteStream):
    """What a server sends after its headers, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx2.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors_of_httpx(self._request):
            async for chunk in self._response.content.iter_chunked(CHUNK_BYTES):
                yield chunk

    async def aclose(self) -> None:
        self._response.release()  # a connection whose body was not read to its end is closed


class _Door(AbstractResolver):
    """Where names become addresses and addresses become sockets: whatever way a call comes, it passes here."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._resolver = aiohttp.ThreadedResolver()
        self._passed: set[str] = set()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of a name, all checked: which one is taken is not for us to say. TLS is still checked against the name."""
        found = await self._resolver.resolve(host, port, family)
        addresses = {place["host"] for place in found}
        self._check(host, addresses)
        self._passed |= addresses
        return found

    async def close(self) -> None:
        await self._resolver.close()

    def socket(self, place: tuple[Any, ...]) -> socket.socket:
        """A socket for an address that a name led to, or that is the host itself: that one is checked only here."""
        family, kind, protocol, _, (address, *_) = place
        if address not in self._passed:
            self._check(address, [str(ipaddress.ip_address(address))])
        return socket.socket(family, kind, protocol)

    def _check(self, host: str, addresses: set[str] | list[str]) -> None:
        try:
            self._guard.check(host, addresses)
        except ConfigError as error:
            raise OSError(str(error)) from error  # what a connection fails with


@contextmanager
def _errors_of_httpx(request: httpx2.Request) -> Iterator[None]:
    """What went wrong as httpx2 has it. Whether anything was sent, and may be paid, hangs on which: ConnectError says that nothing was."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx2.ConnectTimeout(str(error), request=request) from error
    except aiohttp.InvalidURL as error:
        raise httpx2.ConnectError(str(error), request=request) from ConfigError(f"{error}. Write it in full.")
    except (aiohttp.ClientConnectorError, aiohttp.ClientSSLError) as error:
        cause = error.__cause__ or error
        raise httpx2.ConnectError(str(cause), request=request) from cause
    except aiohttp.ServerTimeoutError as error:
        raise httpx2.ReadTimeout(str(error), request=request) from error
    except aiohttp.ServerDisconnectedError as error:
        raise httpx2.RemoteProtocolError("the server closed the connection", request=request) from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError):  # their words quote what the server sent, which may be the key
        raise httpx2.RemoteProtocolError("the answer broke off, or is no valid HTTP", request=request) from None
    except (aiohttp.ClientError, OSError) as error:
        raise httpx2.ReadError(str(error), request=request) from error
