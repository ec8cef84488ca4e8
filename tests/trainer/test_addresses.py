"""The guard against private addresses: what it calls private, what an admin may allow, and that it holds while connecting."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.http_server import Answer, Server, running
from trainer.addresses import AddressGuard
from trainer.errors import ConfigError
from trainer.transport import Transport

HERE = ("127.0.0.1", "::1", "localhost")
"""What may be called where nothing is set."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as it:
        yield it


def guard_of(*entries: str) -> AddressGuard:
    return AddressGuard.from_settings(entries)


def get(guard: AddressGuard, url: str, **options: Any) -> httpx2.Response:
    async def once() -> httpx2.Response:
        transport = Transport(guard, limits=httpx2.Limits())
        async with httpx2.AsyncClient(transport=transport, timeout=5, **options) as client:
            return await client.get(url)

    return asyncio.run(once())


def resolving_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
    """Let every name lead to the next of these lists of addresses, the last one from then on."""
    left = list(answers)

    def getaddrinfo(host: str, port: Any, *args: Any, **options: Any) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# What is private


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "127.0.0.1", "127.8.8.8"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.1", "198.18.0.1"),
        *("[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]"),
        *("[::ffff:10.0.0.5]", "[::ffff:169.254.169.254]", "[::10.0.0.5]", "[64:ff9b::10.0.0.5]", "[64:ff9b:1::1]", "[2002:a00:5::]"),
        *("127.1", "10.1", "0x7f000001", "2130706433", "017700000001", "0xa9fea9fe", "169.254.43518", "10.0.0.5."),
    ],
)
def test_what_is_not_a_place_on_the_internet_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(ConfigError, match=r"is a private address|LIONWEB_PRIVATE_HOSTS"):
        AddressGuard().check_url(f"http://{host}/v1")


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]", "134744072"])
def test_an_address_on_the_internet_passes(host: str) -> None:
    AddressGuard().check_url(f"https://{host}:8443/v1")


def test_a_name_is_refused_where_one_of_its_addresses_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, ["8.8.8.8", "10.0.0.5"])
    with pytest.raises(ConfigError, match=r"api\.example\.com is at 10\.0\.0\.5, which is a private address"):
        AddressGuard().check_url("https://api.example.com/v1")


def test_the_refusal_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"add 10\.0\.0\.5, or a network such as 10\.0\.0\.0/24, to LIONWEB_PRIVATE_HOSTS"):
        AddressGuard().check_url("http://10.0.0.5/v1")


def test_a_name_that_leads_nowhere_passes_for_nothing_can_be_called_there() -> None:
    AddressGuard().check_url("http://nowhere.invalid/v1")


def test_without_resolving_only_addresses_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        AddressGuard().check_url("http://0x7f000001/v1", resolve=False)
    AddressGuard().check_url("http://localhost/v1", resolve=False)


# What may be allowed


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("10.0.0.0/8", "http://10.1.2.3/v1"),
        ("10.0.0.5", "http://10.0.0.5/v1"),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/v1"),
        ("::ffff:0:0/96", "http://[::ffff:10.1.2.3]/v1"),
        ("fd00::/8", "http://[fd12::1]/v1"),
        ("[::1]", "http://[::1]/v1"),
        ("127.0.0.1", "http://127.1/v1"),
        ("localhost", "http://LOCALHOST./v1"),
    ],
)
def test_a_named_place_may_be_called(entry: str, url: str) -> None:
    guard_of(entry).check_url(url)


@pytest.mark.parametrize("url", ["http://10.0.0.5/v1", "http://127.0.0.2/v1", "http://0.0.0.0/v1", "http://[fd00::1]/v1"])
def test_by_default_nothing_private_but_this_machine_may_be_called(url: str) -> None:
    for own in ("http://127.0.0.1:8000/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"):
        guard_of(*HERE).check_url(own)
    with pytest.raises(ConfigError):
        guard_of(*HERE).check_url(url)


def test_a_name_that_is_allowed_may_lead_anywhere_and_its_neighbours_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, ["10.0.0.5"])
    guard = guard_of("vllm.cluster.local")
    guard.check_url("http://vllm.cluster.local:8000/v1")
    for other in ("http://cluster.local/v1", "http://evil.vllm.cluster.local/v1", "http://vllm.cluster.local.example.com/v1"):
        with pytest.raises(ConfigError):
            guard.check_url(other)


def test_none_allows_nothing_private() -> None:
    assert guard_of("none") == AddressGuard()


@pytest.mark.parametrize(
    "entry", ["vllm:8000", "http://vllm", "*.example.com", "10.0.0.0/99", "10.0.0", "127.1", "0x7f000001", "a b", "", "-x", "[vllm]"]
)
def test_an_entry_that_is_no_place_is_told_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"LIONWEB_PRIVATE_HOSTS has .* neither a host name nor an address nor a network"):
        guard_of("10.0.0.0/8", entry)


# While connecting


def test_an_allowed_server_is_called_and_its_connection_kept(server: Server) -> None:
    async def twice() -> None:
        transport = Transport(guard_of(*HERE), limits=httpx2.Limits())
        async with httpx2.AsyncClient(transport=transport) as client:
            for _ in range(2):
                await client.get(server.url)

    asyncio.run(twice())
    assert (len(server.asked), server.connections) == (2, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_a_private_server_gets_no_connection(server: Server, host: str) -> None:
    with pytest.raises(httpx2.ConnectError, match=r"private address|not a canonical IPv4 address"):
        get(guard_of("10.0.0.0/8"), f"http://{host}:{server.port}/v1")
    assert server.asked == []


def test_the_pool_goes_on_after_a_refusal(server: Server) -> None:
    async def both() -> int:
        transport = Transport(guard_of("127.0.0.1"), limits=httpx2.Limits(max_connections=1))
        async with httpx2.AsyncClient(transport=transport, timeout=5) as client:
            with pytest.raises(httpx2.ConnectError, match="private address"):
                await client.get(f"http://0.0.0.0:{server.port}/v1")
            return (await client.get(server.url)).status_code

    assert asyncio.run(both()) == 200


def test_a_name_that_changes_its_address_between_check_and_call_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    guard = AddressGuard()
    guard.check_url(f"http://rebinding.example:{server.port}/v1")
    with pytest.raises(httpx2.ConnectError, match=r"rebinding\.example is at 127\.0\.0\.1"):
        get(guard, f"http://rebinding.example:{server.port}/v1")
    assert server.asked == []


def test_what_was_checked_is_what_is_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
    assert get(guard_of("127.0.0.1"), f"http://once.example:{server.port}/v1").status_code == 200
    assert server.asked[0].headers["host"] == f"once.example:{server.port}"


def test_the_next_address_of_a_name_is_tried_where_nobody_listens_at_the_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    assert get(guard_of("127.0.0.0/8"), f"http://two.example:{server.port}/v1").status_code == 200


def test_a_redirect_to_a_private_address_is_refused_even_by_a_client_that_follows(server: Server) -> None:
    server.answer = lambda asked: Answer(302, headers={"Location": f"http://0.0.0.0:{server.port}/secret"})
    with pytest.raises(httpx2.ConnectError, match=r"0\.0\.0\.0 is a private address"):
        get(guard_of("127.0.0.1"), server.url, follow_redirects=True)
    assert [asked.path for asked in server.asked] == ["/v1"]


def test_a_proxy_named_in_the_environment_is_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert get(guard_of("127.0.0.1"), server.url).status_code == 200


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for right.example, with its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl on the PATH")
    file, key = tmp_path / "server.pem", tmp_path / "key.pem"
    who = ["-subj", "/CN=right.example", "-addext", "subjectAltName=DNS:right.example"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *who, "-keyout", str(key), "-out", str(file)]
    subprocess.run(make, check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file


def test_a_certificate_is_still_checked_against_the_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    resolving_to(monkeypatch, ["127.0.0.1"])
    with running(Server(tls=tls)) as server:
        assert get(guard_of("127.0.0.1"), f"https://right.example:{server.port}/v1").status_code == 200
        with pytest.raises(httpx2.ConnectError, match=r"wrong\.example|Hostname mismatch"):
            get(guard_of("127.0.0.1"), f"https://wrong.example:{server.port}/v1")
